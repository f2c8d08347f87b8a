// One row of the list: handle, switch, name, strengths, remove; under it the block strengths.

import { claim, make } from "../dom.js";
import { partsOf } from "../files/names.js";
import { say } from "../texts.js";
import { openSliders } from "./block_sliders.js";
import { filesOf, isRow, plainName } from "./text.js";
import { numberField } from "./number_field.js";

export function makeRow(view, entry) {
  if (!isRow(entry)) return unreadable(view, entry);
  const at = view.rows.indexOf(entry);
  const found = filesOf(entry, view.files());
  const shown = plainName(found.length === 1 ? found[0] : entry.name);
  const name = nameOf(shown);
  const line = make("div", { class: "line" },
    handle(view, entry, at, name),
    make("button", {
      type: "button", class: "switch", role: "switch", "aria-checked": String(entry.on),
      "data-part": `on:${at}`,
      "aria-label": say("{name} on", { name }), title: say(entry.on ? "On" : "Off"),
      onclick: () => view.edit(() => { entry.on = !entry.on; }),
    }),
    nameButton(view, entry, at, shown, found),
    numberField({
      label: say("Strength of {name}", { name }), value: entry.strength, part: `strength:${at}`,
      onCommit: (value) => view.edit(() => { entry.strength = value; }),
    }),
    view.hasClip ? numberField({
      label: say("CLIP strength of {name}", { name }), value: entry.clip, inherited: entry.strength,
      part: `clip:${at}`,
      onCommit: (value) => view.edit(() => { entry.clip = value; }),
    }) : null,
    removeButton(view, entry, `remove:${at}`, name),
  );
  const classes = `row${entry.on ? "" : " off"}${found.length === 1 ? "" : " missing"}`;
  const blocks = view.showBlocks || entry.blocks ? blocksField(view, entry, at, name) : null;
  const prompt = view.showPrompts || entry.prompt ? promptField(view, entry, at, name) : null;
  return make("div", { class: classes, role: "listitem" }, line, blocks, prompt);
}

function handle(view, entry, at, name) {
  const grip = make("div", {
    class: "handle", "data-part": `handle:${at}`, "aria-hidden": "true",
    title: say("Drag to move {name}, or press Alt+Up or Alt+Down", { name }), onpointerdown: (event) => {
      if (event.button === 0) dragRow(view, entry, at, grip, event);
    },
  });
  return grip;
}

function dragRow(view, entry, at, grip, down) {
  claim(down);
  grip.setPointerCapture(down.pointerId);
  const rows = [...view.list.querySelectorAll(".row:not(.unreadable)")];
  let to = at;
  const mark = () => rows.forEach((row, i) => {
    row.classList.toggle("dragging", i === at);
    row.classList.toggle("drop-above", i === to && to < at);
    row.classList.toggle("drop-below", i === to && to > at);
  });
  const move = (event) => {
    const box = view.list.getBoundingClientRect();
    if (event.clientY < box.top + 8) view.list.scrollTop -= 8;
    if (event.clientY > box.bottom - 8) view.list.scrollTop += 8;
    const above = rows.filter((row, i) => {
      const place = row.getBoundingClientRect();
      return i !== at && event.clientY > place.top + place.height / 2;
    });
    to = above.length;
    mark();
  };
  const end = (event) => {
    grip.removeEventListener("pointermove", move);
    grip.removeEventListener("pointerup", end);
    grip.removeEventListener("pointercancel", end);
    rows.forEach((row) => row.classList.remove("dragging", "drop-above", "drop-below"));
    if (event.type === "pointerup") view.move(entry, to, "name");
  };
  grip.addEventListener("pointermove", move);
  grip.addEventListener("pointerup", end);
  grip.addEventListener("pointercancel", end);
}

function nameButton(view, entry, at, shown, found) {
  const { folder, stem } = partsOf(shown);
  const problem = found.length === 0 ? say("This file is not in the loras folders.")
    : found.length > 1 ? say("Several files have this name: {files}. Choose one.", { files: found.join(", ") })
      : null;
  return make("button", {
    type: "button", class: "name", "data-part": `name:${at}`, "aria-haspopup": "listbox",
    "aria-invalid": problem ? "true" : null, title: problem ? `${entry.name}\n${problem}` : shown,
    onclick: (event) => view.pick(event.currentTarget, entry.typed ?? entry.name, (file) => {
      if (file !== entry.name) view.edit(() => { delete entry.typed; entry.name = file; });
    }),
  }, make("span", { class: "folder" }, folder), make("span", { class: "stem" }, stem));
}

function blocksField(view, entry, at, name) {
  return textField(view, entry, "blocks", at, {
    title: say("blocks"), label: say("Block strengths of {name}", { name }), placeholder: "down:0.5 mid:1",
    clean: (text) => text.replace(/[<>\n]/g, "").trim(),
  }, make("button", {
    type: "button", class: "sliders", "data-part": `sliders:${at}`, "aria-haspopup": "dialog",
    title: say("Set the strength of each block"), "aria-label": say("Set the strength of each block"),
    onclick: (event) => openRowSliders(view, at, event.currentTarget),
  }));
}

/** The row may be drawn anew while the sliders are open, so it is found by its place. */
export function openRowSliders(view, at, anchor) {
  const { typed, name, blocks } = view.rows[at];
  openSliders({
    anchor, name: typed ?? name, text: blocks, onClose: () => view.focus(`sliders:${at}`),
    onCommit: (text) => view.rows[at] && view.edit(() => { view.rows[at].blocks = text; }),
  });
}

function promptField(view, entry, at, name) {
  return textField(view, entry, "prompt", at, {
    title: say("prompt"), label: say("Prompts of {name}", { name }),
    placeholder: say("what it was trained on; several with | between them"), clean: (text) => text.trim(),
  });
}

/** A field under a row that holds one text of the entry. */
function textField(view, entry, key, at, { title, label, placeholder, clean }, ...more) {
  const commit = (event) => {
    const text = clean(event.target.value);
    if (text !== entry[key]) view.edit(() => { entry[key] = text; });
  };
  return make("label", { class: "field" }, title, make("input", {
    type: "text", value: entry[key], spellcheck: "false", "data-part": `${key}:${at}`, placeholder,
    "aria-label": label, onblur: commit,
    onkeydown: (event) => {
      if (event.key === "Enter") commit(event);
      else if (event.key === "Escape") event.target.value = entry[key];
      event.stopPropagation();
    },
  }), ...more);
}

function removeButton(view, entry, part, name) {
  return make("button", {
    type: "button", class: "remove", "data-part": part, "aria-label": say("Remove {name}", { name }),
    title: say("Remove"),
    onclick: () => view.remove(entry),
  }, "×");
}

function unreadable(view, entry) {
  return make("div", { class: "row unreadable", role: "listitem" }, make("div", { class: "line" },
    make("span", { class: "name", title: say("Write <lora:name:strength>") },
      say("Cannot read: {text}", { text: entry.unreadable })),
    removeButton(view, entry, null, entry.unreadable),
  ));
}

/** The name without folder and .safetensors; of a PEFT folder, the folder's. */
export const nameOf = (file) => partsOf(file).stem;
