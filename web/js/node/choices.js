// A list to choose from, with a line about each and tags: type to filter, arrows and Enter choose. Opened by a
// button of a node, which on the canvas is no element: what it opens at is made for it.

import { app } from "../../../../scripts/app.js";
import { claim, loadStyle, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";

loadStyle("./choices.css", import.meta.url);

const ROW = 24; // height of a button of a node on the canvas

/** A button at the end of a node, which stores nothing. ``choices`` says what is offered when it is pressed. */
export function addChoiceButton(node, label, tooltip, choices) {
  const button = node.addWidget("button", label, null, () => {
    const { anchor, remove } = anchorOf(node, button, label);
    openChoices({ anchor, label, onClose: remove, ...choices() });
  }, { serialize: false });
  button.serialize = false;
  button.tooltip = tooltip;
}

/** ``items`` are {value, text, tags, heading}; onPick gets an item, ``intro`` stands above all. */
function openChoices({ anchor, label, intro, items, current, onPick, onClose }) {
  const search = make("input", {
    type: "text", role: "combobox", placeholder: say("Type to filter"), spellcheck: "false", autocomplete: "off",
    "aria-label": label, "aria-expanded": "true", "aria-controls": "lora-alloy-choices",
    oninput: show, onkeydown: onKey,
  });
  const list = make("div", { role: "listbox", id: "lora-alloy-choices", "aria-label": label });
  let active = 0;

  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = ({ value, text, tags = [] }) => {
      const all = [value, text, ...tags].join(" ").toLowerCase();
      return words.every((word) => all.includes(word));
    };
    const found = items.filter(fits);
    let heading = null;
    list.replaceChildren();
    for (const item of found) {
      if (item.heading && item.heading !== heading) {
        list.append(make("div", { class: "heading", role: "presentation" }, item.heading));
      }
      heading = item.heading;
      list.append(option(item));
    }
    if (!found.length) list.append(make("div", { class: "heading", role: "presentation" }, say("Nothing fits.")));
    const at = words.length ? 0 : found.findIndex(({ value }) => value === current);
    activate(Math.max(0, at));
  }

  function option(item) {
    const { value, text, tags = [] } = item;
    return make("div", {
      role: "option", "data-value": value, "aria-selected": "false", onclick: () => pick(item),
      "aria-current": value === current ? "true" : null,
      onpointermove: (event) => activate(options().indexOf(event.currentTarget), false),
    },
    make("div", { class: "name" }, value, ...tags.map((tag) => make("span", { class: "tag" }, tag))),
    text ? make("div", { class: "text" }, text) : null);
  }

  const options = () => [...list.querySelectorAll("[role=option]")];

  function activate(index, scroll = true) {
    const all = options();
    active = Math.max(0, Math.min(index, all.length - 1));
    all.forEach((item, i) => {
      item.id = `lora-alloy-choice-${i}`;
      item.setAttribute("aria-selected", String(i === active));
    });
    search.setAttribute("aria-activedescendant", all.length ? `lora-alloy-choice-${active}` : "");
    if (scroll) all[active]?.scrollIntoView({ block: "nearest" });
  }

  function onKey(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 5, PageUp: -5 };
    if (event.key in steps) activate(active + steps[event.key]);
    else if (event.key === "Enter") options()[active]?.click();
    else if (event.key === "Escape" || event.key === "Tab") close();
    else return event.stopPropagation();
    claim(event);
  }

  function pick(item) {
    close();
    onPick(item);
  }

  const children = [intro ? make("div", { class: "intro" }, intro) : "", search, list];
  const { close } = openPopup({ anchor, className: "lora-alloy-choices", children, onClose, width: 420, height: 480 });
  show();
  search.focus();
}

/** The button's own element in Nodes 2.0; on the canvas one that lies over it until the popup closes. */
function anchorOf(node, widget, label) {
  const host = document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"]`);
  const shown = host && [...host.querySelectorAll("button")].find((each) => each.textContent.trim() === label);
  if (shown ?? host) return { anchor: shown ?? host, remove: () => {} };
  const { ds, canvas } = app.canvas;
  const box = canvas.getBoundingClientRect();
  const y = node.pos[1] + (widget.last_y ?? widget.y ?? node.size[1] - ROW);
  const place = {
    left: box.left + (node.pos[0] + ds.offset[0]) * ds.scale, top: box.top + (y + ds.offset[1]) * ds.scale,
    width: node.size[0] * ds.scale, height: ROW * ds.scale,
  };
  const anchor = make("div", { "aria-hidden": "true" });
  anchor.style.cssText = "position: fixed; pointer-events: none";
  for (const [side, value] of Object.entries(place)) anchor.style[side] = `${value}px`;
  document.body.append(anchor);
  return { anchor, remove: () => anchor.remove() };
}
