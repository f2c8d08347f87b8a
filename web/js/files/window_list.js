// A long list of which only the lines in sight are in the page. All lines are equally high.

import { make } from "../dom.js";

const LINE = 28; // pixels, as picker.css has it
const BEYOND = 12; // lines that are drawn above and below those in sight
const STEP = 6; // lines that may be scrolled before others are drawn

export class WindowList {
  /** ``draw(line, index)`` makes the element of a line. */
  constructor(draw, attributes) {
    Object.assign(this, { draw, lines: [], drawn: new Map() });
    this.space = make("div", { class: "space", role: "presentation" });
    this.element = make("div", { ...attributes, onscroll: () => this.update() }, this.space);
  }

  /** Other lines, scrolled to a place in pixels, or so that the line ``middle`` is in the middle. */
  show(lines, { top = 0, middle = null } = {}) {
    this.lines = lines;
    this.clear();
    this.space.style.height = `${lines.length * LINE}px`;
    const half = middle === null ? 0 : (this.element.clientHeight - LINE) / 2;
    this.element.scrollTop = middle === null ? top : middle * LINE - half;
    this.update();
  }

  clear() {
    this.space.replaceChildren();
    this.drawn.clear();
  }

  update() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.floor((scrollTop / LINE - BEYOND) / STEP) * STEP;
    const last = Math.ceil(((scrollTop + clientHeight) / LINE + BEYOND) / STEP) * STEP;
    for (const [index, element] of this.drawn) {
      if (index >= first && index < last) continue;
      element.remove();
      this.drawn.delete(index);
    }
    for (let index = Math.max(0, first); index < Math.min(last, this.lines.length); index++) {
      if (this.drawn.has(index)) continue;
      const element = this.draw(this.lines[index], index);
      element.style.top = `${index * LINE}px`;
      this.drawn.set(index, element);
      this.space.append(element);
    }
  }

  /** Scroll as little as brings a line into sight, and draw it. */
  reveal(index) {
    const { scrollTop, clientHeight } = this.element;
    const top = index * LINE;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + LINE > scrollTop + clientHeight) this.element.scrollTop = top + LINE - clientHeight;
    this.update();
  }

  /** How many whole lines are in sight. */
  get page() {
    return Math.max(1, Math.floor(this.element.clientHeight / LINE));
  }
}
