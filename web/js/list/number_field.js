// A number that is dragged, stepped with the arrow keys, or typed. Not an <input> until something is typed,
// so that Ctrl+Z reaches the editor.

import { claim, make, set } from "../dom.js";
import { say } from "../texts.js";
import { formatNumber, MAX_STRENGTH, parseNumber } from "./text.js";

const SOFT_LIMIT = 10; // of dragging and stepping; what is typed may go to MAX_STRENGTH

/**
 * ``{element, update}``; ``update({label, value, inherited, part})`` shows another number. ``value`` null is shown
 * as ``inherited``; an empty field gives null where ``inherited`` is given.
 */
export function numberField({ onCommit }) {
  let label = "";
  let value = 0;
  let inherited = null;
  let isBusy = false; // while something is typed or dragged, the field shows that
  const start = () => value ?? inherited;
  const field = make("div", {
    role: "spinbutton", tabindex: "0", "aria-valuemin": -MAX_STRENGTH, "aria-valuemax": MAX_STRENGTH,
    class: "number", onkeydown: onKey, onpointerdown: onDown,
  });

  function update({ label: name, value: now, inherited: from = null, part }) {
    label = name;
    value = now;
    inherited = from;
    field.classList.toggle("inherited", value === null);
    set(field, {
      "data-part": part, "aria-label": label, "aria-valuenow": start(),
      title: `${label}\n${say("Drag or press the arrow keys to change it, hold Shift for fine steps, click to type.")}`
        + (inherited === null ? "" : `\n${say("Leave it empty to use the model's strength.")}`),
    });
    if (!isBusy) field.textContent = show(start());
  }

  function onKey(event) {
    if (event.target !== field || event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (direction) onCommit(stepped(start(), direction * (event.shiftKey ? 0.01 : 0.05)));
    else if (event.key === "Enter" || event.key === "F2") type();
    else if (event.key === "Backspace") type("");
    else if (/^[-+.,\d]$/.test(event.key)) type(event.key);
    else return;
    claim(event);
  }

  function onDown(event) {
    if (event.button !== 0 || event.target !== field) return;
    claim(event);
    field.focus();
    field.setPointerCapture(event.pointerId);
    const from = start();
    let dragged = null;
    let last = event.clientX;
    let exact = from;
    const move = (now) => {
      if (dragged === null && Math.abs(now.clientX - event.clientX) < 4) return;
      isBusy = true;
      exact = clamped(exact + (now.clientX - last) * (now.shiftKey ? 0.001 : 0.01), from);
      last = now.clientX;
      dragged = Number(exact.toFixed(now.shiftKey ? 3 : 2));
      field.textContent = show(dragged);
      field.classList.add("dragging");
    };
    const end = (now) => {
      field.removeEventListener("pointermove", move);
      field.removeEventListener("pointerup", end);
      field.removeEventListener("pointercancel", end);
      field.classList.remove("dragging");
      isBusy = false;
      if (dragged !== null && now.type === "pointerup") onCommit(dragged);
      else if (dragged === null && now.type === "pointerup") type();
      else field.textContent = show(start());
    };
    field.addEventListener("pointermove", move);
    field.addEventListener("pointerup", end);
    field.addEventListener("pointercancel", end);
  }

  function type(text = null) {
    const input = make("input", {
      type: "text", inputmode: "decimal", "aria-label": label, onblur: () => finish(true),
      onkeydown: (event) => {
        if (event.key === "Enter") finish(true);
        else if (event.key === "Escape") finish(false);
        else if (event.key !== "Tab") return event.stopPropagation();
        else return undefined;
        return event.ctrlKey || event.metaKey ? undefined : claim(event);
      },
    });
    input.value = text ?? show(start());
    isBusy = true;
    const finish = (keep) => {
      if (!isBusy) return;
      isBusy = false;
      const typed = input.value.trim().replace(",", ".");
      const number = typed === "" && inherited !== null ? null : parseNumber(typed);
      const isGood = number === null ? typed === "" && inherited !== null : Math.abs(number) <= MAX_STRENGTH;
      const hadFocus = document.activeElement === input;
      field.textContent = show(start());
      if (hadFocus) field.focus();
      if (keep && isGood && number !== value) onCommit(number);
    };
    field.replaceChildren(input);
    input.focus();
    if (text === null) input.select();
  }

  return { element: field, update };
}

const show = (value) => {
  const text = formatNumber(value);
  return /\.\d\d/.test(text) || text.includes("e") ? text : Number(text).toFixed(2);
};

function clamped(value, start) {
  const limit = Math.max(SOFT_LIMIT, Math.abs(start));
  return Math.max(-limit, Math.min(limit, value));
}

const stepped = (value, step) => Number(clamped(value + step, value).toFixed(3));
