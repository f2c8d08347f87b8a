// A list of files to choose one from, under the element that asks: type to search, arrows and Enter choose.

import { claim, loadStyle, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { searchFiles } from "./search.js";

loadStyle("./picker.css", import.meta.url);

const SHOWN = 200;

/** Ask for one of the files; onPick gets its name. */
export function pickFile({ anchor, files, current, onPick, onClose }) {
  const search = make("input", {
    type: "text", role: "combobox", placeholder: say("Search LoRAs"), spellcheck: "false", autocomplete: "off",
    "aria-label": say("Search LoRAs"), "aria-expanded": "true", "aria-controls": "lora-alloy-files",
    oninput: () => show(), onkeydown: onKey,
  });
  const list = make("div", { role: "listbox", id: "lora-alloy-files", "aria-label": say("LoRA files") });
  let active = 0;

  function show() {
    const found = searchFiles(search.value, files);
    let folder = null;
    list.replaceChildren();
    for (const { file, marks } of found.slice(0, SHOWN)) {
      const cut = file.lastIndexOf("/") + 1;
      if (!search.value.trim() && file.slice(0, cut) !== folder) {
        folder = file.slice(0, cut);
        if (folder) list.append(make("div", { class: "folder", role: "presentation" }, folder));
      }
      list.append(option(file, marks, search.value.trim() ? 0 : cut));
    }
    const rest = found.length - SHOWN;
    const note = files.length === 0 ? say("The loras folders are empty.")
      : found.length === 0 ? say("No matching LoRAs.")
      : rest > 0 ? say("{count} more; type to search", { count: rest }) : "";
    if (note) list.append(make("div", { class: "note", role: "presentation" }, note));
    const at = search.value.trim() ? 0 : options().findIndex((item) => item.dataset.file === current);
    activate(Math.max(0, at));
  }

  function option(file, marks, from) {
    const letters = file.split("").map((letter, i) => (marks.has(i) ? make("mark", {}, letter) : letter));
    const shown = letters.slice(from);
    return make("div", {
      role: "option", "data-file": file, title: file, "aria-selected": "false", onclick: () => pick(file),
      onpointermove: (event) => activate(options().indexOf(event.currentTarget), false),
    }, ...shown);
  }

  const options = () => [...list.querySelectorAll("[role=option]")];

  function activate(index, scroll = true) {
    const all = options();
    active = Math.max(0, Math.min(index, all.length - 1));
    all.forEach((item, i) => {
      item.id = `lora-alloy-file-${i}`;
      item.setAttribute("aria-selected", String(i === active));
    });
    search.setAttribute("aria-activedescendant", all.length ? `lora-alloy-file-${active}` : "");
    if (scroll) all[active]?.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) activate(active + steps[event.key]);
    else if (event.key === "Enter") options()[active]?.click();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return event.stopPropagation();
    claim(event);
  }

  function pick(file) {
    close();
    onPick(file);
  }

  const { close } = openPopup({ anchor, className: "lora-alloy-picker", children: [search, list], onClose });
  show();
  search.focus();
}
