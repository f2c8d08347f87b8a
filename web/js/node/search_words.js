// The search box finds a node by its aliases, but ranks it by its id and its name alone, so that what was typed in
// full and is an alias of one of ours would come after every node with those letters somewhere in its name
// ("ties" after "Set Properties"). For the nodes of this pack an alias counts as the name does.

const SCORE = { same: 0, starts: 1 }; // as the frontend's own search rates a name
const LEAST = 3; // letters of a beginning that count

/** Called with the definitions before ComfyUI registers the nodes. */
export function rankByAliases(definitions) {
  for (const [id, definition] of Object.entries(definitions)) {
    const aliases = id.startsWith("LoraAlloy") ? definition.search_aliases : null;
    if (Array.isArray(aliases)) definition.postProcessSearchScores = (scores) => rated(scores, aliases);
  }
}

/** The scores of a node for what is being typed: the kind of match, minus how often it is used, and the rest. */
function rated([kind, ...rest], aliases) {
  const typed = document.activeElement?.value?.trim?.().toLowerCase() ?? "";
  const found = aliases.includes(typed) ? SCORE.same
    : typed.length >= LEAST && aliases.some((alias) => alias.startsWith(typed)) ? SCORE.starts
    : kind;
  return [Math.min(kind, found), 0, ...rest];
}
