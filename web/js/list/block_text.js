// The text of block strengths from one number for each block; merge_ops/blocks reads it. ``blocks`` are those of
// the request /lora_alloy/blocks: a term for a block replaces one for its group, and that one for the group above.

const shown = (value) => String(Number(value.toFixed(3)) || 0);
const word = (name) => name.replace(/\d+$/, ""); // "in" of in4, "double." of double.3

/** The shortest text that sets each block and sort to its value; empty where all are 1. */
export function writeStrengths({ blocks, groups, sorts }, values) {
  const terms = [];
  const value = (name) => shown(values[name] ?? 1);
  const inside = (group) => blocks.filter((block) => block.group === group);
  const below = (group) => Object.keys(groups).filter((name) => groups[name] === group);
  const all = (group) => [...inside(group).map(({ name }) => value(name)), ...below(group).flatMap(all)];
  const isBlock = (group) => blocks.some(({ name, group: above }) => name === group && !above);

  function visit(group, inherited) {
    const isChain = below(group).length === 1 && !inside(group).length;
    const own = isBlock(group) ? value(group) : isChain ? inherited : commonest(all(group), inherited);
    if (own !== inherited) terms.push(`${group}:${own}`);
    for (const name of below(group)) visit(name, own);
    for (const [first, last, strength] of runs(inside(group).filter(({ name }) => value(name) !== own), value)) {
      terms.push(`${first.name}${last === first ? "" : `-${last.number}`}:${strength}`);
    }
  }

  for (const group of below("")) visit(group, "1");
  for (const { name } of sorts) if (value(name) !== "1") terms.push(`${name}:${value(name)}`);
  return terms.join(" ");
}

/** The value that most have, where saying it once is shorter. */
function commonest(values, inherited) {
  const counts = new Map([[inherited, 1]]);
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((best, next) => (next[1] > best[1] ? next : best))[0];
}

/** Neighbours with one value: the first, the last and the value. */
function runs(blocks, value) {
  const found = [];
  for (const block of blocks) {
    const run = found.at(-1);
    const follows = run && block.number !== null && run[1].number + 1 === block.number
      && word(run[1].name) === word(block.name) && run[2] === value(block.name);
    if (follows) run[1] = block;
    else found.push([block, block, value(block.name)]);
  }
  return found;
}
