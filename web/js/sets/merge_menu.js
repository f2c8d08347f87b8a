// What a merge or a recipe can be loaded as: the file itself, or the rows of its sources.

import { claim, loadStyle, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { ask, tell } from "./ask.js";
import { hasMethod, putRows } from "./apply.js";

loadStyle("./sets.css", import.meta.url);

const PATH = "/lora_alloy/recipe";

/**
 * Read the recipe of ``question`` (``{name}`` or ``{text}``) and offer what can be done with it. ``title`` is what
 * it is called; ``file`` is the name of the merge in the loras folders, and ``note`` what to say besides.
 */
export async function offerSources(list, question, { title, file = null, note = null, anchor = null }) {
  try {
    openMenu(list, question, await ask(PATH, question), { title, file, note, anchor });
  } catch (error) {
    tell("error", say("{name} cannot be loaded.", { name: title }), error.message);
  }
}

function openMenu(list, question, recipe, given) {
  const { title, file, note, anchor } = given;
  const { view, node } = list;
  const isEmpty = view.rows.length === 0;
  const count = recipe.count;
  const stopped = new AbortController();

  const choice = (label, run) => make("button", { type: "button", class: "choice", onclick: run }, label);
  const load = (replace, widgets) => () => {
    popup.close();
    putRows(list, recipe.rows, { replace, widgets, focus: `name:${replace ? 0 : view.rows.length}` });
  };
  const search = choice(say("Look for the missing ones among all LoRAs"), async () => {
    search.disabled = true;
    search.textContent = say("Reading all LoRAs. This can take minutes…");
    try {
      const found = await ask(PATH, { ...question, by_content: true }, stopped.signal);
      popup.close();
      openMenu(list, question, found, given);
    } catch (error) {
      if (error.name !== "AbortError") tell("error", say("{name} cannot be loaded.", { name: title }), error.message);
    }
  });
  const choices = [
    file === null ? null : choice(say("Add this merge"), () => {
      popup.close();
      putRows(list, `<lora:${file}:1>`, { focus: `name:${view.rows.length}` });
    }),
    count === 0 ? null : isEmpty
      ? choice(say("Load its {count} sources", { count }), load(false, recipe.widgets))
      : choice(say("Replace the list with its {count} sources", { count }), load(true, recipe.widgets)),
    count === 0 || isEmpty ? null : choice(say("Add its {count} sources to the list", { count }), load(false, null)),
    recipe.searchable ? search : null,
    choice(say("Cancel"), () => popup.close()),
  ].filter(Boolean);

  const popup = openPopup({
    anchor: anchor ?? view.foot, className: "lora-alloy-sets", role: "dialog", "aria-label": title, width: 340,
    children: [
      make("div", { class: "title" }, title),
      make("div", { class: "about" }, say("A merge of {count} LoRAs: {how}", { count, how: howOf(recipe.widgets) })),
      recipe.missing.length ? make("div", { class: "about problem" },
        say("Not in the loras folders, so red in the list: {names}", { names: recipe.missing.join(", ") })) : null,
      ...[note, hasMethod(node) ? null : say("This node has no method, so only the rows are loaded."),
        ...recipe.warnings].filter(Boolean).map((text) => make("div", { class: "about" }, text)),
      ...choices,
    ],
    onClose: () => {
      stopped.abort();
      if (!document.activeElement || document.activeElement === document.body) view.focus("sets");
    },
    onkeydown: (event) => moveFocus(event, choices, () => popup.close()),
  });
  choices[0].focus();
}

/** The method and what matters most of its parameters. */
function howOf(widgets) {
  const density = widgets["method.density"];
  return [
    widgets["method.combination_type"] ?? widgets.method,
    density === undefined ? null : `density ${density}`,
    widgets.strength === 1 ? null : `${say("strength")} ${widgets.strength}`,
  ].filter(Boolean).join(", ");
}

/** Arrows go from choice to choice, Escape leaves; no key reaches ComfyUI's own. */
export function moveFocus(event, choices, leave) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") leave();
  else if (step) {
    const at = choices.indexOf(document.activeElement);
    choices[(at + step + choices.length) % choices.length]?.focus();
  } else return event.stopPropagation();
  return claim(event);
}
