// A list of files to choose one from, under the element that asks: type to search, arrows and Enter choose.

import { claim, loadStyle, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { BaseFilter } from "./base_filter.js";
import { baseOf, readBases } from "./bases.js";
import { openCard } from "./card.js";
import { catalogOf } from "./catalog.js";
import { makeOption, tagOption } from "./option.js";
import { marksOf, Search, wordsOf } from "./search.js";
import { WindowList } from "./window_list.js";

loadStyle("./picker.css", import.meta.url);

const WIDTH = 420;
const HEIGHT = 460;

/**
 * Ask for one of the files; onPick gets its name with plain slashes. ``none`` is a value that may be chosen in place
 * of a file, ``askModel`` finds out which model the file should fit, or null: see connected.js.
 */
export function pickFile(asked) {
  new Picker(asked).open();
}

class Picker {
  constructor({ anchor, files, current, none = null, askModel = null, onPick, onClose }) {
    Object.assign(this, { anchor, current, askModel, onPick, onClose, model: null, active: 0, pointer: "" });
    this.entries = catalogOf(files);
    this.none = none === null ? null : { name: none, file: none, folder: "", stem: none, path: "", none: true };
    this.searching = new Search(this.entries);
    this.search = make("input", {
      type: "text", role: "combobox", placeholder: say("Search LoRAs"), spellcheck: "false", autocomplete: "off",
      "aria-label": say("Search LoRAs"), "aria-expanded": "true", "aria-controls": "lora-alloy-files",
      "aria-autocomplete": "list", oninput: () => this.show(), onkeydown: (event) => this.onKey(event),
    });
    this.filter = new BaseFilter(this.entries, {
      onChoose: () => this.show(), onLeave: (event) => this.onFilterKey(event),
    });
    this.list = new WindowList((line) => this.draw(line), {
      role: "listbox", id: "lora-alloy-files", "aria-label": say("LoRA files"), tabindex: "-1",
      onclick: (event) => this.onClick(event), onpointermove: (event) => this.onMove(event),
      onmousedown: (event) => event.preventDefault(), // the focus stays in the search
    });
    this.said = make("div", { class: "said", role: "status" });
  }

  open() {
    this.popup = openPopup({
      anchor: this.anchor, className: "lora-alloy-picker", width: WIDTH, height: HEIGHT, onClose: this.onClose,
      children: [this.search, this.filter.element, this.list.element, this.said],
    });
    this.filter.update();
    this.show();
    this.search.focus();
    this.learn();
  }

  get isOpen() {
    return this.popup.element.isConnected;
  }

  /** Tags, filters and what does not fit come when they are known; nobody waits for them. */
  learn() {
    readBases(this.entries.map(({ name }) => name), {
      urgent: () => this.visible(), isWanted: () => this.isOpen, onRead: () => this.onBases(),
    });
    this.askModel?.().then((model) => {
      this.model = model;
      if (model && this.isOpen) this.tag();
    });
  }

  visible() {
    const lines = [...this.list.drawn.keys()].map((index) => this.list.lines[index]);
    return lines.filter((line) => line.entry && !line.entry.none).map((line) => line.entry.name);
  }

  onBases() {
    this.filter.update();
    const before = this.options[this.active]?.entry;
    const count = this.options.length;
    if (this.filter.isOn) this.fill();
    if (this.options.length === count) return this.tag();
    this.active = Math.max(0, this.options.findIndex(({ entry }) => entry === before));
    return this.place({ top: this.list.element.scrollTop });
  }

  /** Show on the options in the page what is known by now. */
  tag() {
    for (const [index, element] of this.list.drawn) {
      const { entry } = this.list.lines[index];
      if (!entry || entry.none) continue;
      const base = baseOf(entry.name);
      tagOption(element, entry, base, this.misfit(base));
    }
  }

  /** What the query and the filter leave, with the best of it active; without a query the file that is chosen. */
  show() {
    this.fill();
    const at = this.words.length ? 0 : this.options.findIndex(({ entry }) => entry.file === this.current);
    this.active = Math.max(0, at);
    this.place(at > 0 ? { middle: this.options[at].index } : {});
  }

  place(where) {
    this.list.show(this.lines, where);
    this.name();
  }

  fill() {
    this.words = wordsOf(this.search.value);
    const found = this.searching.find(this.search.value);
    const [holding, similar] = [found.holding, found.similar].map((list) => (
      this.filter.isOn ? list.filter((entry) => this.filter.admits(entry)) : list));
    this.lines = [];
    this.options = [];
    if (this.none && !this.words.length) this.add(this.none);
    if (this.words.length) for (const entry of holding) this.add(entry);
    else this.addFolders(holding);
    if (similar.length) this.lines.push({ heading: say("Similar names") });
    for (const entry of similar) this.add(entry);
    const count = holding.length + similar.length;
    const note = !this.entries.length ? say("The loras folders are empty.") : count ? null : say("No matching LoRAs.");
    if (note) this.lines.push({ note });
    this.said.textContent = note ?? say("{count} LoRAs", { count });
  }

  addFolders(entries) {
    let folder = "";
    for (const entry of entries) {
      if (entry.folder !== folder) {
        folder = entry.folder;
        this.lines.push({ heading: folder });
      }
      this.add(entry);
    }
  }

  add(entry) {
    const line = { entry, at: this.options.length, index: this.lines.length };
    this.options.push(line);
    this.lines.push(line);
  }

  draw(line) {
    if (!line.entry) {
      const [name, text] = line.heading ? ["heading", line.heading] : ["note", line.note];
      return make("div", { class: name, role: "presentation", title: text }, make("bdi", {}, text));
    }
    const { entry, at } = line;
    const option = makeOption(entry, {
      id: `lora-alloy-file-${at}`, at, count: this.options.length,
      marks: marksOf(entry, this.words), from: this.words.length ? 0 : entry.folder.length,
      isCurrent: entry.file === this.current, isActive: at === this.active,
    });
    const base = entry.none ? null : baseOf(entry.name);
    if (base) tagOption(option, entry, base, this.misfit(base));
    return option;
  }

  misfit(base) {
    const { model } = this;
    if (!model || !base || model.fits.includes(base)) return null;
    return say("For {base}; the connected model is {model}.", { base, model: model.base });
  }

  element(at) {
    return this.list.drawn.get(this.options[at]?.index);
  }

  activate(at, scroll = true) {
    this.element(this.active)?.setAttribute("aria-selected", "false");
    this.active = Math.max(0, Math.min(at, this.options.length - 1));
    if (scroll && this.options.length) this.list.reveal(this.options[this.active].index);
    if (scroll && this.active === 0) this.list.element.scrollTop = 0; // with the heading above it
    this.element(this.active)?.setAttribute("aria-selected", "true");
    this.name();
  }

  name() {
    const active = this.element(this.active);
    if (active) this.search.setAttribute("aria-activedescendant", active.id);
    else this.search.removeAttribute("aria-activedescendant");
  }

  onKey(event) {
    const jumps = !this.search.value || event.ctrlKey || event.metaKey;
    const { page } = this.list;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    if (event.key in steps) this.activate(this.active + steps[event.key]);
    else if (event.key === "Home" && jumps) this.activate(0);
    else if (event.key === "End" && jumps) this.activate(this.options.length - 1);
    else if (event.key === "Enter") this.pick(this.options[this.active]);
    else if (event.key === "F1" || (event.key.toLowerCase() === "i" && event.ctrlKey)) this.tell(this.active);
    else if (event.key === "Tab" && this.filter.isShown) this.filter.focus();
    else if (event.key === "Escape" || event.key === "Tab") this.popup.close();
    else return event.stopPropagation();
    return claim(event);
  }

  onFilterKey(event) {
    if (event.key === "Escape") this.popup.close();
    else if (event.key === "Tab" || event.key === "ArrowDown") this.search.focus();
  }

  onClick(event) {
    const option = event.target.closest("[role=option]");
    if (!option) this.search.focus();
    else if (event.target.closest(".info")) this.tell(Number(option.dataset.at));
    else this.pick(this.options[option.dataset.at]);
  }

  /** The pointer moved over the list, and not the list under it. */
  onMove(event) {
    const at = `${event.clientX} ${event.clientY}`;
    const option = event.target.closest("[role=option]");
    if (option && at !== this.pointer && Number(option.dataset.at) !== this.active) {
      this.activate(Number(option.dataset.at), false);
    }
    this.pointer = at;
  }

  pick(line) {
    if (!line) return;
    this.popup.close();
    this.onPick(line.entry.file);
  }

  /** The card of a file. */
  tell(at) {
    const { entry } = this.options[at] ?? {};
    const anchor = this.element(at);
    if (!anchor || entry.none) return;
    openCard({ anchor, name: entry.name, onClose: () => this.isOpen && this.search.focus() });
  }
}
