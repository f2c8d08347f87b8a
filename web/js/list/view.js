// The editor of a list of LoRAs: rows over the text that is the widget's value.

import { claim, loadStyle, make } from "../dom.js";
import { pickFile } from "../files/picker.js";
import { say } from "../texts.js";
import { expertsOf } from "./experts.js";
import { makeHead } from "./head.js";
import { become, keepEntries, place } from "./keyed.js";
import { makeRow } from "./row.js";
import { openRowMenu } from "./row_menu.js";
import { filesCalled, formatList, isRow, parseList, pastedEntries, plainName, settled } from "./text.js";

loadStyle("../base.css", import.meta.url);
loadStyle("./list.css", import.meta.url);

const SHOWN_ROWS = 12; // more are scrolled
const ROW = 28;
const FRAME = 62; // header, footer and the gaps
const NARROW = [270, 320]; // with less, and with two strengths, a row takes two lines

export class ListView {
  /**
   * ``onEdit`` is called with the new text after each edit, ``onText`` whenever there is another text; ``files``
   * gives the names of the LoRA files. ``onShown`` is called when the list has another place or size in the page.
   * ``isPair`` tells whether the rows are for two models.
   * ``onSets`` opens the menu of sets at an element, ``onSources(file, anchor)`` offers what a merge was made from.
   */
  constructor({
    files, onEdit, onSets, onSources, onText = () => {}, onResize = () => {}, onShown = () => {}, askModel = null,
    isPair = () => false,
  }) {
    Object.assign(this, { files, onEdit, onSets, onSources, onText, onResize, askModel, isPair });
    Object.assign(this, { text: "", entries: [], drawn: new Map() });
    Object.assign(this, { showClip: false, showBlocks: false, showPrompts: false, narrow: false });
    this.timed = new WeakSet(); // rows whose field for steps is open though it is empty
    this.head = makeHead(this);
    this.list = make("div", { class: "rows", role: "list" });
    this.hint = make("div", { class: "hint" }, say("No LoRAs yet. Add one, or paste <lora:name:0.8>."));
    this.add = make("button", {
      type: "button", class: "add", "data-part": "add", "aria-haspopup": "listbox",
      onclick: () => this.addRow(this.add),
    }, say("+ Add LoRA"));
    this.sets = make("button", {
      type: "button", class: "sets-button", "data-part": "sets", "aria-haspopup": "dialog",
      title: say("Save and load sets of LoRAs"), onclick: () => this.onSets(this.sets),
    }, say("Sets"));
    this.grammar = make("span", { class: "hint" },
      say("One <lora:name:strength> per line; # switches a line off"));
    this.foot = make("div", { class: "foot" });
    this.root = make("div", {
      class: "lora-alloy lora-alloy-list", role: "group", "aria-label": say("LoRAs"), tabindex: "-1",
      title: "", // instead of that of the whole input, which would lie over the rows
      onkeydown: (event) => this.onKey(event), onpaste: (event) => this.onPaste(event),
    }, this.head.element, this.list, this.foot);
    new ResizeObserver(() => {
      if (this.isNarrow !== this.narrow) this.render();
      onShown();
    }).observe(this.root);
    this.render();
  }

  setText(text) {
    if (text === this.text) return;
    this.text = text;
    this.entries = keepEntries(this.entries, parseList(text));
    if (this.textarea) this.textarea.value = text;
    this.render();
    this.onText(text);
  }

  /** Change the entries; the text follows, and one step can be undone. */
  edit(change, focus = null) {
    change();
    for (const entry of this.entries) if (entry.typed) become(entry, settled(entry, this.files()));
    this.text = formatList(this.entries);
    this.onEdit(this.text);
    this.render(focus);
    this.onText(this.text);
  }

  get rows() {
    return this.entries.filter(isRow);
  }

  /** Whether a row shows its strength over the sampling. */
  showsSteps(row) {
    return Boolean(row.steps) || this.timed.has(row);
  }

  /** ``{model, isSet}`` of a row that is for one of two models, or says that it is for both; else null. */
  sideOf(row) {
    if (row.model) return { model: row.model, isSet: true };
    const model = this.experts?.get(row);
    return model ? { model, isSet: false } : null;
  }

  /** Whether rows may say for which of two models they are. */
  get isForTwo() {
    return this.isPair() || this.rows.some((row) => row.model);
  }

  get isNarrow() {
    const width = this.root.clientWidth;
    return width > 0 ? width < NARROW[Number(this.hasClip)] : this.narrow;
  }

  /** Pixels that all rows need, up to SHOWN_ROWS of them. */
  get height() {
    if (this.textarea) return FRAME + 5 * ROW;
    const lines = this.entries.filter((entry) => !entry.remark);
    const fields = this.rows.filter((row) => this.showBlocks || row.blocks).length
      + this.rows.filter((row) => this.showPrompts || row.prompt).length
      + this.rows.filter((row) => this.showsSteps(row)).length;
    const second = this.narrow ? this.rows.length : 0;
    return FRAME + ROW * Math.max(1, Math.min(lines.length + fields + second, SHOWN_ROWS));
  }

  /** Show the entries; the focus stays where it is, or goes to the part ``focus``. */
  render(focus = null) {
    const held = document.activeElement;
    const part = this.focused();
    this.hasClip = this.showClip || this.rows.some((row) => row.clip !== null);
    this.experts = this.isPair() ? this.findExperts() : null;
    this.narrow = this.isNarrow;
    this.renderRows();
    this.head.update();
    place(this.foot, this.textarea ? [this.grammar] : [this.add, this.sets]);
    this.root.classList.toggle("narrow", this.narrow);
    this.root.style.minHeight = `${this.height}px`;
    this.onResize();
    if (focus) this.focus(focus);
    else if (part && document.activeElement !== held) {
      if (this.root.contains(held)) held.focus(); // a row that was moved
      else this.focus(part);
    }
  }

  /** What the names of the rows in use say; a pair of bare words counts only while both are on. */
  findExperts() {
    const used = this.rows.filter((row) => row.on && (row.strength || (row.clip ?? row.strength)));
    const names = used.map((row) => {
      const found = filesCalled(row.typed ?? row.name, this.files());
      return plainName(found.length === 1 ? found[0] : row.name);
    });
    return new Map(expertsOf(names).map((expert, at) => [used[at], expert]));
  }

  renderRows() {
    if (this.textarea) return place(this.list, [this.textarea]);
    const before = this.drawn;
    this.drawn = new Map();
    let at = 0;
    for (const entry of this.entries.filter(({ remark }) => !remark)) {
      const row = before.get(entry) ?? makeRow(this, entry);
      this.drawn.set(entry, row);
      row.update(isRow(entry) ? at++ : null);
    }
    const elements = [...this.drawn.values()].map(({ element }) => element);
    return place(this.list, elements.length ? elements : [this.hint]);
  }

  toggleText() {
    if (this.textarea) {
      this.textarea = null;
      return;
    }
    // the value follows while typing, so that queueing takes it; undo steps from field to field
    let before = this.text;
    const commit = () => {
      if (this.text === before) return;
      before = this.text;
      this.onEdit(this.text);
    };
    this.textarea = make("textarea", {
      spellcheck: "false", "aria-label": say("The list as text"), placeholder: "<lora:name:strength>",
      oninput: () => {
        this.text = this.textarea.value;
        this.entries = keepEntries(this.entries, parseList(this.text));
        this.head.update();
        this.onText(this.text);
      },
      onblur: commit,
      onkeydown: (event) => {
        if (event.key !== "Escape") return;
        claim(event);
        this.toggleText();
        this.render("tab-Text");
      },
    });
    this.textarea.value = this.text;
    requestAnimationFrame(() => this.textarea?.focus());
  }

  addRow(anchor) {
    this.pick(anchor, null, (name) => {
      const row = { name, strength: 1, clip: null, on: true, blocks: "", prompt: "", steps: "", model: "" };
      this.edit(() => this.entries.push(row), "add");
      this.list.scrollTop = this.list.scrollHeight;
    });
  }

  pick(anchor, current, onPick) {
    const found = current === null ? [] : filesCalled(current, this.files());
    const part = this.focused() ?? anchor.dataset.part;
    pickFile({
      anchor, files: this.files(), current: found.length ? plainName(found[0]) : null, onPick,
      onClose: () => this.focus(part), askModel: this.askModel,
    });
  }

  /** Put a row at the place of another one; remarks stay where they are. */
  move(row, to, part = this.focused()?.split(":")[0] ?? "menu") {
    const target = this.rows[to];
    if (!target || target === row) return;
    const down = this.entries.indexOf(row) < this.entries.indexOf(target);
    this.edit(() => {
      this.entries.splice(this.entries.indexOf(row), 1);
      this.entries.splice(this.entries.indexOf(target) + (down ? 1 : 0), 0, row);
    }, `${part}:${to}`);
  }

  remove(entry) {
    const focus = this.focused() ?? "add";
    this.edit(() => this.entries.splice(this.entries.indexOf(entry), 1), focus);
  }

  onKey(event) {
    const [part, at] = (event.target.dataset?.part ?? "").split(":");
    const row = this.rows[at];
    const isMenu = event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey);
    if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey) return;
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (row && step && event.altKey) this.move(row, Number(at) + step, part);
    else if (row && step) this.focus(`${part}:${Math.max(0, Number(at) + step)}`);
    else if (row && event.key === "Delete") this.remove(row);
    else if (row && isMenu) openRowMenu(this, row, this.root.querySelector(`[data-part="menu:${at}"]`));
    else if (event.key === " " || event.key === "Enter") return event.stopPropagation();
    else if (!["Delete", "Backspace"].includes(event.key)) return;
    claim(event);
  }

  onPaste(event) {
    if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const pasted = pastedEntries(event.clipboardData.getData("text/plain"), this.files());
    if (!pasted.some(isRow)) return;
    claim(event);
    const last = this.rows.length + pasted.filter(isRow).length - 1;
    this.edit(() => this.entries.push(...pasted), `name:${last}`);
  }

  focused() {
    const active = document.activeElement;
    return this.root.contains(active) ? active.closest("[data-part]")?.dataset.part ?? null : null;
  }

  /** Focus a part such as ``strength:2``, or the one that took its place: of the last row, or of the list. */
  focus(part) {
    const [name, at] = part.split(":");
    const row = Math.min(at ?? 0, this.rows.length - 1);
    for (const each of [part, `${name}:${row}`, `name:${row}`, "add", "tab-Text"]) {
      const found = this.root.querySelector(`[data-part="${each}"]`);
      if (found) return found.focus();
    }
  }
}
