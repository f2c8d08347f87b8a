// The menu of sets: find one by its name, load it, append it, rename or delete it, and save the list as one.

import { claim, loadStyle, make } from "../dom.js";
import { partsOf } from "../files/names.js";
import { pickFile } from "../files/picker.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { putRows, rowsIn } from "./apply.js";
import { moveFocus, offerSources } from "./merge_menu.js";
import { problemOf } from "./names.js";
import { makeSetRow } from "./set_row.js";
import { listSets, readSet, removeSet, renameSet, writeSet } from "./store.js";
import { KINDS, takeFiles } from "./taken.js";

loadStyle("./sets.css", import.meta.url);

/** Open the menu for a list, ``{view, node}``. */
export function openSets(list, anchor) {
  const menu = new SetsMenu(list, anchor);
  menu.read();
}

class SetsMenu {
  constructor(list, anchor) {
    Object.assign(this, { list, anchor, names: [] });
    this.search = make("input", {
      type: "text", placeholder: say("Search sets"), "aria-label": say("Search sets"), spellcheck: "false",
      autocomplete: "off", oninput: () => this.render(),
    });
    this.rows = make("div", { class: "sets", role: "list", "aria-label": say("Sets of LoRAs") });
    this.status = make("div", { class: "about problem", role: "status" });
    this.foot = make("div", { class: "actions" });
    this.popup = openPopup({
      anchor, className: "lora-alloy-sets", role: "dialog", "aria-label": say("Sets of LoRAs"), width: 340,
      children: [this.search, this.rows, this.status, this.foot],
      onClose: () => list.view.focus("sets"),
      onkeydown: (event) => moveFocus(event, this.stops, () => this.popup.close()),
    });
    this.showActions();
    this.search.focus();
  }

  /** Where the arrow keys go. */
  get stops() {
    return [this.search, ...this.rows.querySelectorAll(".load"), ...this.foot.querySelectorAll("button, input")];
  }

  async read() {
    await this.doing(async () => { this.names = await listSets(); });
    this.render();
  }

  /** Do something that may fail; what went wrong is said in the menu. True if it went well. */
  async doing(work) {
    this.status.textContent = "";
    try {
      await work();
      return true;
    } catch (error) {
      this.status.textContent = error.message;
      return false;
    }
  }

  render() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
    const note = this.names.length === 0 ? say("No sets yet. Save the rows of this list as one.")
      : found.length === 0 ? say("No matching sets.") : null;
    this.rows.replaceChildren(
      ...found.map((name) => makeSetRow(name, this)),
      ...(note ? [make("div", { class: "about" }, note)] : []),
    );
    this.search.hidden = this.names.length === 0;
  }

  /** Put a set into the list: in place of its rows, or after them. */
  async load(name, append) {
    await this.doing(async () => {
      const text = await readSet(name);
      if (!rowsIn(text)) throw new Error(say("There are no LoRAs in {name}.", { name }));
      this.popup.close();
      putRows(this.list, text.trimEnd(), { replace: !append, focus: "sets" });
    });
  }

  async rename(name, other) {
    const problem = problemOf(other)
      ?? (this.isThere(other, name) ? say("There is already a set {name}.", { name: other }) : null);
    this.status.textContent = problem ?? "";
    if (problem) return;
    const isDone = other === name || await this.doing(() => renameSet(name, other));
    if (!isDone) return;
    this.search.value = ""; // which the new name may not fit
    await this.readAndFocus(other);
  }

  async remove(name) {
    const at = this.names.indexOf(name);
    if (await this.doing(() => removeSet(name))) await this.readAndFocus(this.names[at + 1] ?? this.names[at - 1]);
  }

  async readAndFocus(name) {
    await this.read();
    (this.rows.querySelector(`[data-set="${CSS.escape(name ?? "")}"] .load`) ?? this.foot.querySelector("button"))
      ?.focus();
  }

  /** Some systems take names that differ in the case of letters for the same. */
  isThere(name, except = null) {
    return this.names.some((other) => other !== except && other.toLowerCase() === name.toLowerCase());
  }

  showActions(focus = false) {
    const isEmpty = this.list.view.rows.length === 0;
    const save = make("button", {
      type: "button", class: "action", disabled: isEmpty, onclick: () => this.showSave(),
      title: say(isEmpty ? "The list has no rows to save." : "Save the rows of this list as a set"),
    }, say("Save as…"));
    const open = make("button", {
      type: "button", class: "action", onclick: () => this.chooseFile(),
      title: say("A recipe (.json, .yaml), a saved merge, a LoRA or a set from this computer"),
    }, say("Open a file…"));
    const sources = make("button", {
      type: "button", class: "action", "aria-haspopup": "listbox", onclick: () => this.chooseMerge(sources),
      title: say("Load what a saved merge was made from"),
    }, say("Sources of a merge…"));
    this.foot.replaceChildren(save, open, sources);
    if (focus) save.focus();
  }

  /** A field for the name in place of the actions; a name that is taken is asked about first. */
  showSave() {
    const field = make("input", {
      type: "text", "aria-label": say("Name of the set"), placeholder: say("Name of the set"), spellcheck: "false",
      oninput: () => { save.textContent = say("Save"); this.status.textContent = ""; },
      onkeydown: (event) => {
        if (event.key === "Enter") submit();
        else if (event.key === "Escape") this.showActions(true);
        else return;
        claim(event);
      },
    });
    const submit = async () => {
      const name = field.value.trim();
      const problem = problemOf(name);
      const asks = !problem && this.isThere(name) && save.textContent !== say("Overwrite");
      this.status.textContent = problem ?? (asks ? say("There is already a set {name}. Overwrite it?", { name }) : "");
      if (asks) save.textContent = say("Overwrite");
      if (problem || asks) return;
      const overwrite = this.isThere(name);
      if (!await this.doing(() => writeSet(name, this.list.view.text, overwrite))) return;
      this.search.value = "";
      this.showActions();
      await this.readAndFocus(name);
    };
    const save = make("button", { type: "button", class: "action", onclick: submit }, say("Save"));
    this.foot.replaceChildren(field, save,
      make("button", { type: "button", class: "action", onclick: () => this.showActions(true) }, say("Cancel")));
    field.focus();
  }

  chooseFile() {
    const input = make("input", {
      type: "file", multiple: true, accept: KINDS.join(","), onchange: () => {
        this.popup.close();
        takeFiles(this.list, [...input.files]);
      },
    });
    input.click();
  }

  chooseMerge(anchor) {
    const { view } = this.list;
    pickFile({
      anchor, files: view.files(), current: null, onClose: () => anchor.focus(),
      onPick: (file) => {
        this.popup.close();
        loadSources(this.list, file);
      },
    });
  }
}

/** Offer the sources of a merge in the loras folders, such as that of a row. */
export function loadSources(list, file, anchor = null) {
  return offerSources(list, { name: file }, { title: partsOf(file).stem, anchor });
}
