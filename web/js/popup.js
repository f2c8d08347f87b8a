// What opens over the page, at an element that asks for it: a list of files, a menu, a card. A popup that was
// opened from another one lies on it; a press outside of both closes both.

import { loadStyle, make } from "./dom.js";

loadStyle("./base.css", import.meta.url);

const open = []; // the last lies on top
const GAP = 4;
const EDGE = 8; // least room between a popup and the edge of the window

/**
 * Open a popup with these children under the anchor, or above it where there is more room, and return
 * ``{element, close}``. ``width`` is the least width in pixels, ``height`` the largest height. Popups that the
 * anchor does not lie in are closed first. ``onClose`` is called however it is closed.
 */
export function openPopup({ anchor, className, children, onClose, width = 300, height = 420, ...attributes }) {
  closeOthers(anchor);
  const element = make("div", { class: `lora-alloy-popup ${className}`, ...attributes }, ...children);
  const popup = { element, onClose, close: () => closeFrom(open.indexOf(popup)) };
  if (!open.length) listen("addEventListener");
  open.push(popup);
  document.body.append(element);
  place(element, anchor.getBoundingClientRect(), width, height);
  return popup;
}

const closeOutside = (event) => closeOthers(event.target);

/** Close from the top what does not contain the target. */
function closeOthers(target) {
  const within = open.findLastIndex(({ element }) => element.contains(target));
  closeFrom(within + 1);
}

function closeFrom(index) {
  if (index < 0) return;
  for (const { element, onClose } of open.splice(index).reverse()) {
    element.remove();
    onClose?.();
  }
  if (!open.length) listen("removeEventListener");
}

function listen(change) {
  for (const name of ["pointerdown", "wheel"]) document[change](name, closeOutside, true);
}

/** Under the anchor or above it, and inside of the window. */
function place(element, box, width, height) {
  const below = innerHeight - box.bottom - EDGE - GAP;
  const above = box.top - EDGE - GAP;
  const isBelow = below >= Math.min(320, above);
  const wide = Math.min(Math.max(box.width, width), innerWidth - 2 * EDGE);
  element.style.width = `${wide}px`;
  element.style.left = `${Math.max(EDGE, Math.min(box.left, innerWidth - wide - EDGE))}px`;
  element.style.maxHeight = `${Math.max(120, Math.min(height, isBelow ? below : above))}px`;
  element.style[isBelow ? "top" : "bottom"] = `${isBelow ? box.bottom + GAP : innerHeight - box.top + GAP}px`;
}
