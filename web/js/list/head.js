// The line over the rows: a switch for all of them, how many are on, and what is shown besides names and strengths.

import { make, set } from "../dom.js";
import { say } from "../texts.js";
import { openHelp } from "./help.js";

/** ``{element, update}`` for a list; it is made once, so that its buttons keep the focus. */
export function makeHead(view) {
  const all = make("button", {
    type: "button", class: "switch", role: "switch", "data-part": "all", "aria-label": say("All LoRAs on"),
    title: say("Switch all on or off"),
    onclick: () => view.edit(() => {
      const on = view.rows.some((row) => !row.on);
      for (const row of view.rows) row.on = on;
    }),
  });
  const count = make("span", { class: "count", "aria-live": "polite" });
  const tabs = {
    CLIP: tab(view, "CLIP", () => { view.showClip = !view.showClip; }),
    Blocks: tab(view, "Blocks", () => { view.showBlocks = !view.showBlocks; }),
    Prompts: tab(view, "Prompts", () => { view.showPrompts = !view.showPrompts; }),
    Text: tab(view, "Text", () => view.toggleText()),
  };
  const help = make("button", {
    type: "button", class: "tab", "data-part": "help", "aria-haspopup": "dialog", "aria-label": say("Help"),
    title: say("Help"), onclick: () => openHelp(help),
  }, "?");

  function update() {
    const rows = view.rows;
    const on = rows.filter((row) => row.on).length;
    set(all, {
      "aria-checked": on === 0 ? "false" : on === rows.length ? "true" : "mixed", disabled: rows.length === 0,
    });
    const said = view.narrow ? `${on}/${rows.length}` : say("{on} of {all} on", { on, all: rows.length });
    if (count.textContent !== said) count.textContent = said; // it is read aloud when it changes
    const fixed = rows.some((row) => row.clip !== null);
    show("CLIP", view.hasClip, say(fixed
      ? "Set a separate strength for the text encoder; shown while any LoRA has one"
      : "Set a separate strength for the text encoder"));
    show("Blocks", view.showBlocks, say("Set strengths block by block, such as down:0.5 mid:1"));
    show("Prompts", view.showPrompts,
      say("Say what each LoRA was trained on, for Record LoRAs: a prompt, or several with | between them"));
    show("Text", Boolean(view.textarea), say("Edit the list as text"));
  }

  function show(name, pressed, title) {
    set(tabs[name], { "aria-pressed": String(pressed), title });
  }

  return { element: make("div", { class: "head" }, all, count, ...Object.values(tabs), help), update };
}

function tab(view, label, toggle) {
  return make("button", {
    type: "button", class: "tab", "data-part": `tab-${label}`, onclick: () => { toggle(); view.render(); },
  }, say(label));
}
