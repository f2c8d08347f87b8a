// The editor of a list of LoRAs: rows over the text that is the widget's value.

import { claim, loadStyle, make } from "../dom.js";
import { pickFile } from "../files/picker.js";
import { say } from "../texts.js";
import { makeRow } from "./row.js";
import { filesCalled, formatList, isRow, parseList, pastedEntries, plainName, settled } from "./text.js";

loadStyle("../base.css", import.meta.url);
loadStyle("./list.css", import.meta.url);

const SHOWN_ROWS = 12; // more are scrolled
const ROW = 28;
const FRAME = 62; // header, footer and the gaps
const NARROW = 290; // with less, and two strengths, a row takes two lines

export class ListView {
  /** ``onEdit`` is called with the new text after each edit, ``files`` gives the names of the LoRA files. */
  constructor({ files, onEdit, onResize, askModel = null }) {
    Object.assign(this, { files, onEdit, onResize, askModel, text: "", entries: [] });
    Object.assign(this, { showClip: false, showBlocks: false, showPrompts: false, narrow: false });
    this.head = make("div", { class: "head" });
    this.list = make("div", { class: "rows", role: "list" });
    this.foot = make("div", { class: "foot" });
    this.root = make("div", {
      class: "lora-alloy", role: "group", "aria-label": say("LoRAs"), tabindex: "-1",
      onkeydown: (event) => this.onKey(event), onpaste: (event) => this.onPaste(event),
    }, this.head, this.list, this.foot);
    new ResizeObserver(() => {
      if (this.isNarrow === this.narrow) return;
      this.narrow = this.isNarrow;
      this.render();
    }).observe(this.root);
    this.render();
  }

  setText(text) {
    if (text === this.text) return;
    this.text = text;
    this.entries = parseList(text);
    this.render();
  }

  /** Change the entries; the text follows, and one step can be undone. */
  edit(change, focus = null) {
    change();
    this.entries = this.entries.map((entry) => (entry.typed ? settled(entry, this.files()) : entry));
    this.text = formatList(this.entries);
    this.onEdit(this.text);
    this.render(focus);
  }

  get rows() {
    return this.entries.filter(isRow);
  }

  get hasClip() {
    return this.showClip || this.rows.some((row) => row.clip !== null);
  }

  get isNarrow() {
    return this.root.clientWidth > 0 && this.root.clientWidth < NARROW;
  }

  /** Pixels that all rows need, up to SHOWN_ROWS of them. */
  get height() {
    if (this.textarea) return FRAME + 5 * ROW;
    const lines = this.entries.filter((entry) => !entry.remark);
    const fields = this.rows.filter((row) => this.showBlocks || row.blocks).length
      + this.rows.filter((row) => this.showPrompts || row.prompt).length;
    const second = this.hasClip && this.narrow ? this.rows.length : 0;
    return FRAME + ROW * Math.max(1, Math.min(lines.length + fields + second, SHOWN_ROWS));
  }

  render(focus = this.focused()) {
    if (!this.textarea) {
      const lines = this.entries.filter((entry) => !entry.remark).map((entry) => makeRow(this, entry));
      const hint = make("div", { class: "hint" }, say("No LoRAs yet. Add one, or paste <lora:name:0.8>."));
      this.list.replaceChildren(...(lines.length ? lines : [hint]));
    }
    this.renderHead();
    const add = make("button", {
      type: "button", class: "add", "data-part": "add", "aria-haspopup": "listbox",
      onclick: (event) => this.addRow(event.currentTarget),
    }, say("+ Add LoRA"));
    const hint = make("span", { class: "hint" },
      say("One <lora:name:strength> per line; # switches a line off"));
    this.foot.replaceChildren(this.textarea ? hint : add);
    this.root.classList.toggle("narrow", this.narrow);
    this.root.classList.toggle("two-lines", this.narrow && this.hasClip);
    this.root.style.minHeight = `${this.height}px`;
    this.onResize();
    if (focus) this.focus(focus);
  }

  renderHead() {
    const rows = this.rows;
    const on = rows.filter((row) => row.on).length;
    const all = make("button", {
      type: "button", class: "switch", role: "switch", "data-part": "all",
      "aria-checked": on === 0 ? "false" : on === rows.length ? "true" : "mixed",
      "aria-label": say("All LoRAs on"), title: say("Switch all on or off"), disabled: rows.length === 0,
      onclick: () => this.edit(() => rows.forEach((row) => { row.on = on < rows.length; })),
    });
    const fixed = rows.some((row) => row.clip !== null);
    this.head.replaceChildren(
      all,
      make("span", { class: "count", "aria-live": "polite" },
        say("{on} of {all} on", { on, all: rows.length })),
      this.tab("CLIP", this.hasClip, say(fixed
        ? "Set a separate strength for the text encoder; shown while any LoRA has one"
        : "Set a separate strength for the text encoder"), () => { this.showClip = !this.showClip; }),
      this.tab("Blocks", this.showBlocks, say("Set strengths block by block, such as down:0.5 mid:1"),
        () => { this.showBlocks = !this.showBlocks; }),
      this.tab("Prompts", this.showPrompts,
        say("Say what each LoRA was trained on, for Record LoRAs: a prompt, or several with | between them"),
        () => { this.showPrompts = !this.showPrompts; }),
      this.tab("Text", Boolean(this.textarea), say("Edit the list as text"), () => this.toggleText()),
    );
  }

  tab(label, pressed, title, toggle) {
    return make("button", {
      type: "button", class: "tab", "data-part": `tab-${label}`, "aria-pressed": String(pressed), title,
      onclick: () => { toggle(); this.render(); },
    }, say(label));
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
        this.entries = parseList(this.text);
        this.renderHead();
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
    this.list.replaceChildren(this.textarea);
    requestAnimationFrame(() => this.textarea?.focus());
  }

  addRow(anchor) {
    this.pick(anchor, null, (name) => {
      const row = { name, strength: 1, clip: null, on: true, blocks: "", prompt: "" };
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
  move(row, to, part) {
    const target = this.rows[to];
    if (!target || target === row) return;
    const down = this.entries.indexOf(row) < this.entries.indexOf(target);
    this.edit(() => {
      this.entries.splice(this.entries.indexOf(row), 1);
      this.entries.splice(this.entries.indexOf(target) + (down ? 1 : 0), 0, row);
    }, `${part}:${to}`);
  }

  remove(entry) {
    const at = this.rows.indexOf(entry);
    const left = this.rows.length - 1;
    const focus = left > 0 && at >= 0 ? `remove:${Math.min(at, left - 1)}` : "add";
    this.edit(() => this.entries.splice(this.entries.indexOf(entry), 1), focus);
  }

  onKey(event) {
    const [part, at] = (event.target.dataset?.part ?? "").split(":");
    if (/^(INPUT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey) return;
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const row = this.rows[at];
    if (row && step && event.altKey) this.move(row, Number(at) + step, part);
    else if (row && step) this.focus(`${part}:${Number(at) + step}`);
    else if (row && event.key === "Delete") this.remove(row);
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

  focus(part) {
    this.root.querySelector(`[data-part="${part}"]`)?.focus({ preventScroll: false });
  }
}
