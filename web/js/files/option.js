// One file in the list to choose from: folder, name, base model, and a button for more about it.

import { make } from "../dom.js";
import { say } from "../texts.js";

const TAIL = 12; // letters at the end of a long name that are always seen: versions are told apart there
const LONG = 28;

/** ``from`` is where the shown part of the path begins. */
export function makeOption(entry, { id, at, count, marks, from, isCurrent, isActive }) {
  const { folder, stem, file } = entry;
  const path = folder + stem;
  const cut = folder.length + cutOf(stem);
  const part = (name, start, end) => (start < end
    ? make("span", { class: name }, ...marked(path, start, end, marks)) : null);
  return make("div", {
    role: "option", id, "data-file": file, "data-at": at, "aria-selected": String(isActive),
    "aria-setsize": count, "aria-posinset": at + 1, "aria-current": isCurrent ? "true" : null,
    "aria-label": path, title: file,
  },
    part("folder", from, folder.length), part("start", folder.length, cut), part("end", cut, path.length),
    make("span", { class: "side" }, entry.none ? null : make("button", {
      type: "button", class: "info", tabindex: "-1", "aria-hidden": "true", title: say("About this LoRA (F1)"),
    }, "i")),
  );
}

/** Show the base model, and why it does not fit, on an option that stays as it is: it may be pressed just now. */
export function tagOption(option, { folder, stem, file }, base, reason) {
  const side = option.querySelector(".side");
  const tag = side.querySelector(".base") ?? (base && make("span", { class: "base" }));
  if (base) {
    tag.textContent = base;
    side.prepend(tag);
  } else tag?.remove();
  option.classList.toggle("unfit", Boolean(reason));
  option.setAttribute("aria-label", [folder + stem, base, reason].filter(Boolean).join(", "));
  option.title = reason ? `${file}\n${reason}` : file;
}

/** Where a long name may be shortened; signs that belong together stay so. */
function cutOf(stem) {
  if (stem.length < LONG) return stem.length;
  let cut = stem.length - TAIL;
  while (cut > 0 && /[\udc00-\udfff\u200d\ufe0f\p{M}]/u.test(stem[cut])) cut -= 1;
  return cut;
}

/** The text from start to end, in as few pieces as the marks allow. */
function marked(path, start, end, marks) {
  if (!marks.size) return [path.slice(start, end)];
  const pieces = [];
  for (let i = start, next; i < end; i = next) {
    const isMarked = marks.has(i);
    for (next = i + 1; next < end && marks.has(next) === isMarked; next++);
    const text = path.slice(i, next);
    pieces.push(isMarked ? make("mark", {}, text) : text);
  }
  return pieces;
}
