// The row of base models above the list of files: one is chosen, and only its files are listed.

import { claim, make } from "../dom.js";
import { say } from "../texts.js";
import { baseOf } from "./bases.js";

const ALL = "";
const UNKNOWN = null;
let chosen = ALL; // as long as the page is open

export class BaseFilter {
  /** ``onChoose`` is called when another one was chosen, ``onLeave`` with keys that lead back to the search. */
  constructor(entries, { onChoose, onLeave }) {
    Object.assign(this, { entries, onChoose, onLeave, shown: [] });
    this.element = make("div", {
      class: "bases", role: "radiogroup", "aria-label": say("Base model"), hidden: entries.length === 0,
      onclick: (event) => this.choose(event.target.closest("button")),
      onkeydown: (event) => this.onKey(event),
      onwheel: (event) => { this.element.scrollLeft += event.deltaY; },
    });
  }

  get isShown() {
    return !this.element.hidden;
  }

  get isOn() {
    return chosen !== ALL;
  }

  /** Whether the files that are listed may have this entry among them. */
  admits(entry) {
    return !this.isOn || baseOf(entry.name) === chosen;
  }

  /** Count again. The row is there from the start and stays one line: the list under it must not move away. */
  update() {
    const counts = new Map();
    let unknown = 0;
    for (const { name } of this.entries) {
      const base = baseOf(name);
      if (base === null) unknown += 1;
      else if (base !== undefined) counts.set(base, (counts.get(base) ?? 0) + 1);
    }
    if (chosen && !counts.has(chosen)) counts.set(chosen, 0);
    const bases = [...counts].sort(([a, n], [b, m]) => m - n || a.localeCompare(b));
    const last = unknown || chosen === UNKNOWN ? [[UNKNOWN, unknown]] : [];
    this.shown = [[ALL, this.entries.length], ...bases, ...last];
    const at = this.shown.findIndex(([base]) => base === chosen);
    this.shown.forEach(([base, count], i) => this.draw(i, base, count, i === at));
    while (this.element.children.length > this.shown.length) this.element.lastChild.remove();
  }

  draw(i, base, count, isChosen) {
    const button = this.element.children[i]
      ?? this.element.appendChild(make("button", { type: "button", role: "radio" }));
    const label = base === ALL ? say("All") : base === UNKNOWN ? say("Unknown") : base;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
    button.replaceChildren(label, make("span", {}, ` ${count.toLocaleString()}`));
  }

  choose(button) {
    if (!button) return;
    const at = [...this.element.children].indexOf(button);
    [chosen] = this.shown[at];
    this.update();
    this.element.children[this.shown.findIndex(([base]) => base === chosen)].focus();
    this.onChoose();
  }

  focus() {
    this.element.querySelector('[tabindex="0"]')?.focus();
  }

  onKey(event) {
    const { children } = this.element;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      const at = [...children].indexOf(document.activeElement);
      this.choose(children[(at + step + children.length) % children.length]);
    } else if (event.key === " " || event.key === "Enter") return event.stopPropagation();
    else this.onLeave(event);
    return claim(event);
  }
}
