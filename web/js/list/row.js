// One row of the list: handle, switch, name, strengths, menu, remove; under it the block strengths and the prompts.
// A row is made once for its entry and then follows it, so that what has the focus in it keeps it.

import { make, set } from "../dom.js";
import { partsOf } from "../files/names.js";
import { say } from "../texts.js";
import { openRowSliders } from "./block_sliders.js";
import { checkBlocks } from "./blocks.js";
import { dragRow } from "./drag.js";
import { place } from "./keyed.js";
import { numberField } from "./number_field.js";
import { openRowMenu } from "./row_menu.js";
import { checkSteps } from "./steps.js";
import { epochsOf, filesOf, formatRow, isRow, plainName } from "./text.js";

/** ``{element, update}`` for an entry; ``update(at)`` shows it as the row with this number. */
export function makeRow(view, entry) {
  if (!isRow(entry)) return unreadable(view, entry);
  const grip = make("div", {
    class: "handle", "aria-hidden": "true",
    onpointerdown: (event) => event.button === 0 && dragRow(view, entry, grip, event),
  });
  const power = make("button", {
    type: "button", class: "switch", role: "switch", onclick: () => view.edit(() => { entry.on = !entry.on; }),
  });
  const [folder, stem] = ["folder", "stem"].map((name) => make("span", { class: name }));
  const button = make("button", {
    type: "button", class: "name", "aria-haspopup": "listbox", onclick: () => pickAnother(view, entry, button),
  }, folder, stem);
  const strength = numberField({ onCommit: (value) => view.edit(() => { entry.strength = value; }) });
  // most rows have none of these
  const clip = once(() => numberField({ onCommit: (value) => view.edit(() => { entry.clip = value; }) }));
  const side = once(() => make("span", { class: "side" }));
  const menu = make("button", {
    type: "button", class: "menu", "aria-haspopup": "menu", title: say("More"),
    onclick: () => openRowMenu(view, entry, menu),
  }, "⋮");
  const remove = removeButton(view, entry);
  const line = make("div", { class: "line" });
  const blocks = once(() => textField(view, entry, "blocks", {
    title: say("blocks"), placeholder: "down:0.5 mid:1", clean: (text) => text.replace(/[<>\n]/g, "").trim(),
    check: checkBlocks, more: [make("button", {
      type: "button", class: "sliders", "aria-haspopup": "dialog", title: say("Set the strength of each block"),
      "aria-label": say("Set the strength of each block"),
      onclick: (event) => openRowSliders(view, entry, event.currentTarget),
    })],
  }));
  const prompt = once(() => textField(view, entry, "prompt", {
    title: say("prompt"), placeholder: say("what it was trained on; several with | between them"),
    clean: (text) => text.trim(),
  }));
  const steps = once(() => textField(view, entry, "steps", {
    title: say("steps"), placeholder: "0-0.25", clean: (text) => text.replace(/[<>\n]/g, "").trim(),
    check: checkSteps, onLeave: () => {
      if (view.timed.delete(entry) && !entry.steps) view.render();
    },
  }));
  const element = make("div", {
    class: "row", role: "listitem",
    oncontextmenu: (event) => {
      event.stopPropagation(); // the menu of the node or the canvas is elsewhere
      if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
      event.preventDefault();
      openRowMenu(view, entry, menu, event);
    },
  }, line);
  let drawn = null;
  let files = null;

  function update(at) {
    const state = [at, formatRow(entry), entry.typed, view.hasClip, view.showBlocks, view.showPrompts, view.showsSteps(entry),
      ...Object.values(view.sideOf(entry) ?? {})].join("\n");
    if (state === drawn && files === view.files()) return;
    [drawn, files] = [state, view.files()];
    const found = filesOf(entry, files);
    const epochs = epochsOf(entry, files);
    const shown = plainName(found.length === 1 ? found[0] : entry.name);
    const { folder: path, stem: name } = partsOf(shown);
    const isFound = found.length === 1 || epochs.length > 0;
    set(element, { class: `row${entry.on ? "" : " off"}${isFound ? "" : " missing"}` });
    set(grip, {
      "data-part": `handle:${at}`, title: say("Drag to move {name}, or press Alt+Up or Alt+Down", { name }),
    });
    set(power, {
      "data-part": `on:${at}`, "aria-checked": String(entry.on), "aria-label": say("{name} on", { name }),
      title: say(entry.on ? "On" : "Off"),
    });
    const problem = isFound ? null : problemOf(found);
    set(button, {
      "data-part": `name:${at}`, "aria-invalid": problem && "true",
      title: [problem ? entry.name : shown, problem, epochs.map((file) => partsOf(file).stem).join(", ")]
        .filter(Boolean).join("\n"),
    });
    folder.textContent = path;
    stem.textContent = epochs.length ? say("{name} ({count} files)", { name, count: epochs.length }) : name;
    strength.update({ label: say("Strength of {name}", { name }), value: entry.strength, part: `strength:${at}` });
    set(menu, { "data-part": `menu:${at}`, "aria-label": say("More for {name}", { name }) });
    set(remove, { "data-part": `remove:${at}`, "aria-label": say("Remove {name}", { name }) });
    const numbers = [strength.element];
    if (view.hasClip) {
      clip().update({
        label: say("CLIP strength of {name}", { name }), value: entry.clip, inherited: entry.strength,
        part: `clip:${at}`,
      });
      numbers.push(clip().element);
    }
    const own = view.sideOf(entry);
    if (own) showSide(side(), own);
    place(line, [grip, power, button, ...(own ? [side()] : []), ...numbers, menu, remove]);
    const lines = [line];
    if (view.showsSteps(entry)) {
      steps().update(`steps:${at}`, say("Strength of {name} over the sampling", { name }));
      lines.push(steps().element);
    }
    if (view.showBlocks || entry.blocks) {
      blocks().update(`blocks:${at}`, say("Block strengths of {name}", { name }));
      set(blocks().element.querySelector(".sliders"), { "data-part": `sliders:${at}` });
      lines.push(blocks().element);
    }
    if (view.showPrompts || entry.prompt) {
      prompt().update(`prompt:${at}`, say("Prompts of {name}", { name }));
      lines.push(prompt().element);
    }
    place(element, lines);
  }

  return { element, update };
}

function once(makePart) {
  let part;
  return () => (part ??= makePart());
}

const SIDES = { high: "For the high-noise model", low: "For the low-noise model", both: "For both models" };

function showSide(chip, { model, isSet }) {
  const why = isSet ? say("as set in this row") : say("as its name says");
  set(chip, { class: `side${isSet ? " set" : ""}`, title: `${say(SIDES[model])}: ${why}`, "data-model": model });
  chip.textContent = say(model);
}

const problemOf = (found) => (found.length === 0 ? say("This file is not in the loras folders.")
  : found.length > 1 ? say("Several files have this name: {files}. Choose one.", { files: found.join(", ") })
    : null);

function pickAnother(view, entry, anchor) {
  view.pick(anchor, entry.typed ?? entry.name, (file) => {
    if (file !== entry.name) view.edit(() => { delete entry.typed; entry.name = file; });
  });
}

/** A field under a row that holds one text of the entry; ``check`` says what is wrong while it is typed. */
function textField(view, entry, key, { title, placeholder, clean, check = () => null, onLeave = () => {}, more = [] }) {
  const input = make("input", {
    type: "text", spellcheck: "false", placeholder, oninput: mark,
    onblur: () => {
      commit();
      onLeave();
    },
    onkeydown: (event) => {
      event.stopPropagation();
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault(); // or Enter would press what gets the focus of a field that goes
      if (event.key === "Enter") commit();
      else show();
    },
  });

  function commit() {
    const text = clean(input.value);
    if (text !== entry[key]) view.edit(() => { entry[key] = text; });
    show();
  }

  function show() {
    input.value = entry[key];
    mark();
  }

  function mark() {
    const problem = check(clean(input.value));
    set(input, { "aria-invalid": problem && "true", title: problem });
  }

  function update(part, label) {
    set(input, { "data-part": part, "aria-label": label });
    if (document.activeElement !== input && input.value !== entry[key]) show();
  }

  return { element: make("label", { class: "field" }, make("span", {}, title), input, ...more), update };
}

function removeButton(view, entry) {
  return make("button", {
    type: "button", class: "remove", title: say("Remove"), onclick: () => view.remove(entry),
  }, "×");
}

function unreadable(view, entry) {
  const remove = removeButton(view, entry);
  set(remove, { "aria-label": say("Remove {name}", { name: entry.unreadable }) });
  const element = make("div", { class: "row unreadable", role: "listitem" }, make("div", { class: "line" },
    make("span", { class: "name", title: say("Write <lora:name:strength>") },
      say("Cannot read: {text}", { text: entry.unreadable })),
    remove,
  ));
  return { element, update: () => {} };
}
