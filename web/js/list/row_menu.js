// The menu of a row: what can be done with it, one line each.

import { claim, loadStyle, make } from "../dom.js";
import { openCard } from "../files/card.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { openRowSliders } from "./block_sliders.js";
import { filesOf, formatNumber } from "./text.js";

loadStyle("./row_menu.css", import.meta.url);

const MODELS = {
  high: "For the high-noise model", low: "For the low-noise model", both: "For both models",
  "": "For the model that its name says",
};
const last = (view) => view.rows.length - 1;
const at = (view, entry) => view.rows.indexOf(entry);

// {id, label(view, entry), run(view, entry, anchor), isShown(view, entry)}; the anchor is the row's menu button
export const ACTIONS = [
  { id: "info", label: () => say("Info"), isShown: (view, entry) => fileOf(view, entry) !== null, run: showCard },
  { id: "off", label: () => say("Switch off"), isShown: (view, entry) => entry.on, run: switchRow },
  { id: "on", label: () => say("Switch on"), isShown: (view, entry) => !entry.on, run: switchRow },
  {
    id: "only", label: () => say("Only this one on"), isShown: (view) => last(view) > 0,
    run: (view, entry) => view.edit(() => view.rows.forEach((row) => { row.on = row === entry; })),
  },
  {
    id: "strength", isShown: (view) => last(view) > 0,
    label: (view, entry) => say("Strength {strength} for all", { strength: formatNumber(entry.strength) }),
    run: (view, entry) => view.edit(() => view.rows.forEach((row) => { row.strength = entry.strength; })),
  },
  { id: "blocks", label: () => say("Block strengths"), run: openRowSliders },
  { id: "steps", label: () => say("Strength over the sampling"), run: openSteps },
  ...["high", "low", "both", ""].map((model) => ({
    id: `on-${model || "name"}`, label: () => say(MODELS[model]),
    isShown: (view, entry) => view.isForTwo && entry.model !== model,
    run: (view, entry) => view.edit(() => { entry.model = model; }),
  })),
  {
    id: "up", label: () => say("Move up"), isShown: (view, entry) => at(view, entry) > 0,
    run: (view, entry) => view.move(entry, at(view, entry) - 1),
  },
  {
    id: "down", label: () => say("Move down"), isShown: (view, entry) => at(view, entry) < last(view),
    run: (view, entry) => view.move(entry, at(view, entry) + 1),
  },
  {
    id: "top", label: () => say("Move to the top"), isShown: (view, entry) => at(view, entry) > 1,
    run: (view, entry) => view.move(entry, 0),
  },
  {
    id: "bottom", label: () => say("Move to the bottom"),
    isShown: (view, entry) => at(view, entry) < last(view) - 1,
    run: (view, entry) => view.move(entry, last(view)),
  },
  {
    id: "duplicate", label: () => say("Duplicate"),
    run: (view, entry) => view.edit(() => view.entries.splice(view.entries.indexOf(entry) + 1, 0, { ...entry })),
  },
  { id: "remove", label: () => say("Remove"), run: (view, entry) => view.remove(entry) },
];

/** The file of a row, where it is clear. */
function fileOf(view, entry) {
  const found = filesOf(entry, view.files());
  return found.length === 1 ? found[0] : null;
}

function openSteps(view, entry) {
  view.timed.add(entry);
  view.render(`steps:${at(view, entry)}`);
}

function showCard(view, entry, anchor) {
  const name = fileOf(view, entry);
  openCard({
    anchor, name, onClose: () => view.focus(anchor.dataset.part), onSources: () => view.onSources(name, anchor),
  });
}

function switchRow(view, entry) {
  view.edit(() => { entry.on = !entry.on; });
}

/** Open the menu at the row's button, or where the pointer is. */
export function openRowMenu(view, entry, anchor, pointer = null) {
  const before = pointer ? anchor.dataset.part : view.focused() ?? anchor.dataset.part;
  const items = ACTIONS.filter(({ isShown }) => isShown?.(view, entry) ?? true).map((action) => make("button", {
    type: "button", role: "menuitem", tabindex: "-1", "data-action": action.id,
    onpointermove: (event) => event.currentTarget.focus(),
    onclick: () => {
      popup.close();
      action.run(view, entry, anchor);
    },
  }, action.label(view, entry)));
  const popup = openPopup({
    anchor, className: "lora-alloy-menu", children: items, width: 190, role: "menu",
    "aria-label": anchor.getAttribute("aria-label"), onkeydown: (event) => onKey(event, items, popup),
    oncontextmenu: claim,
    onClose: () => {
      anchor.setAttribute("aria-expanded", "false");
      view.focus(before);
    },
  });
  anchor.setAttribute("aria-expanded", "true");
  if (pointer?.clientX || pointer?.clientY) moveTo(popup.element, pointer);
  items[0].focus();
}

/** Beside the pointer, inside of the window. */
function moveTo(element, { clientX, clientY }) {
  const { width, height } = element.getBoundingClientRect();
  const [left, top] = [Math.min(clientX, innerWidth - width - 8), Math.min(clientY, innerHeight - height - 8)];
  Object.assign(element.style, { left: `${Math.max(8, left)}px`, top: `${Math.max(8, top)}px`, bottom: "auto" });
}

function onKey(event, items, popup) {
  const now = items.indexOf(document.activeElement);
  const to = {
    ArrowDown: now + 1, ArrowUp: now - 1, Home: 0, End: -1,
  }[event.key] ?? (isLetter(event) ? startingWith(event.key, items, now) : null);
  if (to !== null) items[(to + items.length) % items.length].focus();
  else if (event.key === "Escape" || event.key === "Tab") popup.close();
  else return event.stopPropagation(); // Enter and Space press the button
  claim(event);
}

const isLetter = ({ key, ctrlKey, metaKey, altKey }) =>
  key.length === 1 && key !== " " && !ctrlKey && !metaKey && !altKey;

/** The next item from here that starts with a letter; the same one where none does. */
function startingWith(letter, items, now) {
  const order = items.map((item, i) => (now + 1 + i) % items.length);
  const starts = (i) => items[i].textContent.toLowerCase().startsWith(letter.toLowerCase());
  return order.find(starts) ?? now;
}
