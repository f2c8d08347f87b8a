// A widget that holds the name of one file: a button that opens the list of files.

import { loadStyle, make } from "../dom.js";
import { say } from "../texts.js";
import { filesCalled, partsOf, plainName } from "./names.js";
import { pickFile } from "./picker.js";

loadStyle("../base.css", import.meta.url);
loadStyle("./field.css", import.meta.url);

const NONE = "none"; // the value without a file

export class FileField {
  /** ``label`` and ``files`` are asked when they are needed; ``onEdit`` is called with the name of a new file. */
  constructor({ label, files, askModel, onEdit }) {
    Object.assign(this, { label, files, askModel, onEdit, text: NONE, height: 26 });
    this.caption = make("span", { class: "caption" });
    this.button = make("button", {
      type: "button", class: "name", "aria-haspopup": "listbox", onclick: () => this.pick(),
    });
    this.root = make("div", { class: "lora-alloy file-field" }, this.caption, this.button);
    this.render();
  }

  setText(text) {
    if (text === this.text) return;
    this.text = text;
    this.render();
  }

  get isNone() {
    return this.text === NONE || this.text === "";
  }

  render() {
    const found = this.isNone ? [] : filesCalled(this.text, this.files());
    const { folder, stem } = partsOf(found.length === 1 ? found[0] : this.text);
    const problem = this.isNone || found.length === 1 ? null
      : found.length ? say("Several files have this name: {files}. Choose one.", { files: found.join(", ") })
        : say("This file is not in the loras folders.");
    const name = this.isNone ? NONE : plainName(this.text);
    const label = this.label();
    this.caption.textContent = label;
    this.button.replaceChildren(...(this.isNone ? [name] : [
      make("span", { class: "folder" }, folder), make("span", { class: "stem" }, stem),
    ]));
    this.button.setAttribute("aria-label", `${label}: ${name}`);
    this.button.title = problem ? `${name}\n${problem}` : name;
    if (problem) this.button.setAttribute("aria-invalid", "true");
    else this.button.removeAttribute("aria-invalid");
  }

  pick() {
    const found = this.isNone ? [] : filesCalled(this.text, this.files());
    pickFile({
      anchor: this.button, files: this.files(), none: NONE, askModel: this.askModel,
      current: this.isNone ? NONE : found.length ? plainName(found[0]) : null,
      onPick: (file) => this.choose(file), onClose: () => this.button.focus(),
    });
  }

  choose(file) {
    if (file === this.text) return;
    this.setText(file);
    this.onEdit(file);
  }
}
