// Sliders over the block strengths of one row: one for each block that the file changes, one for each group of
// them, tinted by how much of the change is there. The text stays the value: it is read when they open, and
// written when a slider is let go.

import { api } from "../../../../scripts/api.js";
import { claim, loadStyle, make } from "../dom.js";
import { partsOf } from "../files/names.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { writeStrengths } from "./block_text.js";

loadStyle("./block_sliders.css", import.meta.url);

const TITLES = {
  te: () => say("Text encoder"),
  down: () => say("Down"),
  unet: () => say("Model"),
  up: () => say("Up"),
  refiner: () => say("Refiner"),
  double: () => say("Double blocks"),
  single: () => say("Single blocks"),
  blocks: () => say("Blocks"),
  sorts: () => say("In all blocks"),
};
const LABELS = { unet: () => say("other"), ff: () => "mlp" };
const TOP = 2; // of a slider, unless a value is above

/** Open the sliders for the file of a row. ``text`` are its block strengths; ``onCommit`` gets the new ones. */
export function openSliders({ anchor, name, text, onCommit, onClose }) {
  const body = make("div", { class: "body", "aria-live": "polite" }, say("Reading the file…"));
  const popup = openPopup({
    anchor, className: "lora-alloy-sliders", children: [body], width: 660, height: 760, role: "dialog",
    "aria-label": say("Block strengths"), tabindex: "-1", onkeydown: onKey,
    onClose: () => { sliders?.commit(); onClose?.(); },
  });
  let sliders = null;
  popup.element.focus();

  function onKey(event) {
    if (event.key === "Escape") claim(event);
    else if (!(event.ctrlKey || event.metaKey)) return event.stopPropagation();
    popup.close(); // undo and the like are for the editor, and change what the sliders show
  }

  ask(name, text).then((found) => {
    if (!popup.element.isConnected) return;
    sliders = new Sliders(partsOf(name).stem, found, text, onCommit);
    const hasFocus = popup.element.contains(document.activeElement);
    body.replaceWith(...sliders.elements);
    if (hasFocus) popup.element.querySelector("[role=slider]")?.focus();
  }).catch((error) => body.replaceChildren(error.message));
  return popup;
}

async function ask(name, text) {
  const answer = await api.fetchApi(`/lora_alloy/blocks?${new URLSearchParams({ name, text })}`);
  const found = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

class Sliders {
  constructor(name, found, text, onCommit) {
    Object.assign(this, { name, found, text, onCommit, values: { ...found.values }, isMoved: false, drawn: [] });
    this.committed = text;
    this.top = Math.max(TOP, Math.ceil(Math.max(...Object.values(found.values))));
    this.low = Math.min(0, Math.floor(Math.min(...Object.values(found.values))));
    this.line = make("output", { class: "text", "aria-label": say("Block strengths") });
    this.note = make("div", { class: "note" });
    this.elements = [this.head(), make("div", { class: "sections" }, ...this.sections()), this.line, this.note];
    this.draw();
  }

  head() {
    return make("div", { class: "head" }, make("b", {}, say("Block strengths of {name}", { name: this.name })),
      make("span", { class: "key" }, say("The stronger the colour, the more of the LoRA's change is there")),
      make("button", {
        type: "button", "data-part": "reset", onclick: () => { this.set(Object.keys(this.values), 1); this.commit(); },
      }, say("Reset all")));
  }

  sections() {
    const { blocks, sorts } = this.found;
    const largest = Math.max(...blocks.map(({ norm }) => norm ?? 0), 1e-30);
    const total = blocks.reduce((sum, { norm }) => sum + (norm ?? 0) ** 2, 0);
    const column = (block, most = largest) => this.slider(block.name, labelOf(block), [block.name],
      hint(block, total), block.norm === null ? 0.5 : Math.sqrt(block.norm / most));
    const made = Object.keys(TITLES).filter((group) => group !== "sorts").map((group) => {
      const those = blocks.filter((block) => (block.group || block.name) === group);
      if (!those.length) return null;
      const names = those.map((block) => block.name);
      const all = those.length > 1 && group !== "unet"
        ? this.slider(`all:${group}`, say("all"), names, say("All of {group}", { group: TITLES[group]() }), null)
        : null;
      return section(group, [all, ...those.map((block) => column(block))]);
    });
    if (sorts.length) made.push(section("sorts", sorts.map((sort) => column(sort, Math.sqrt(total)))));
    return made.filter(Boolean);
  }

  slider(part, label, names, title, tint) {
    const fill = make("span", { class: "fill" });
    const number = make("span", { class: "value" });
    const track = make("span", { class: "track" }, fill);
    const element = make("div", {
      class: tint === null ? "slider all" : "slider", role: "slider", tabindex: "0", title, "data-part": part,
      "aria-orientation": "vertical", "aria-label": title, "aria-valuemin": this.low, "aria-valuemax": this.top,
      onkeydown: (event) => this.onKey(event, names), onkeyup: () => this.commit(), onblur: () => this.commit(),
      ondblclick: () => { this.set(names, 1); this.commit(); },
      onpointerdown: (event) => this.onDown(event, names, track, element),
    }, number, track, make("span", { class: "label" }, label));
    if (tint !== null) element.style.setProperty("--share", `${Math.round(20 + 80 * tint)}%`);
    this.drawn.push({ element, fill, number, names });
    return element;
  }

  onKey(event, names) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    const start = this.values[names[0]];
    if (step) this.set(names, start + step * (event.shiftKey ? 0.01 : 0.05));
    else if (event.key === "Home") this.set(names, this.low);
    else if (event.key === "End") this.set(names, this.top);
    else if (event.key === "Delete" || event.key === "Backspace") this.set(names, 1);
    else return;
    claim(event);
  }

  onDown(event, names, track, element) {
    if (event.button !== 0) return;
    claim(event);
    element.focus();
    element.setPointerCapture(event.pointerId);
    let isDragged = false;
    const move = (now) => {
      if (!isDragged && Math.abs(now.clientY - event.clientY) < 3) return; // so that a double click moves nothing
      isDragged = true;
      const box = track.getBoundingClientRect();
      const exact = this.low + ((box.bottom - now.clientY) / box.height) * (this.top - this.low);
      const step = now.shiftKey ? 0.01 : 0.05;
      this.set(names, Math.round(exact / step) * step);
    };
    const end = () => {
      element.removeEventListener("pointermove", move);
      element.removeEventListener("pointerup", end);
      element.removeEventListener("pointercancel", end);
      this.commit();
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", end);
    element.addEventListener("pointercancel", end);
  }

  set(names, value) {
    const kept = Number(Math.max(this.low, Math.min(value, this.top)).toFixed(3));
    if (names.every((name) => this.values[name] === kept)) return;
    for (const name of names) this.values[name] = kept;
    this.isMoved = true;
    this.text = writeStrengths(this.found, this.values);
    this.draw();
  }

  commit() {
    if (!this.isMoved || this.text === this.committed) return;
    this.committed = this.text;
    this.onCommit(this.text);
  }

  draw() {
    const { top, low, found } = this;
    for (const { element, fill, number, names } of this.drawn) {
      const values = new Set(names.map((name) => this.values[name]));
      const [value] = values;
      const isMixed = values.size > 1;
      const height = Math.max(0, Math.min((value - low) / (top - low), 1));
      fill.style.height = isMixed ? "0" : `${100 * height}%`;
      number.textContent = isMixed ? "–" : String(Number(value.toFixed(2)));
      element.classList.toggle("changed", isMixed || value !== 1);
      element.setAttribute("aria-valuenow", value);
      element.setAttribute("aria-valuetext", isMixed ? say("mixed") : String(value));
    }
    this.line.textContent = this.text || say("1 everywhere");
    this.note.classList.toggle("problem", Boolean(found.problem));
    this.note.textContent = this.isMoved ? ""
      : found.problem ? say("This text cannot be read: {problem}. Moving a slider replaces it.", { problem: found.problem })
        : found.exact ? "" : say("This text says more than sliders can show. Moving one replaces it.");
  }
}

function section(group, sliders) {
  return make("div", { class: "section", role: "group", "aria-label": TITLES[group]() },
    make("div", { class: "title" }, TITLES[group]()), make("div", { class: "columns" }, ...sliders));
}

function labelOf({ name, group, number }) {
  return LABELS[name]?.() ?? String(group === "unet" ? name : number ?? name);
}

function hint({ name, layers, norm }, total) {
  const share = norm === null || !total ? "" : `, ${say("{share} % of the change", {
    share: Math.round((100 * norm ** 2) / total),
  })}`;
  return `${name}: ${say(layers === 1 ? "1 layer" : "{count} layers", { count: layers })}${share}`;
}

/** Undo may put another entry in the row's place while the sliders are open: they go on with that one. */
export function openRowSliders(view, entry, anchor) {
  const at = view.rows.indexOf(entry);
  openSliders({
    anchor, name: entry.typed ?? entry.name, text: entry.blocks, onClose: () => view.focus(anchor.dataset.part),
    onCommit: (text) => view.rows[at] && view.edit(() => { view.rows[at].blocks = text; }),
  });
}
