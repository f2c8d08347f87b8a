// One set of the menu: its name loads it; buttons append, rename and delete it.

import { claim, make } from "../dom.js";
import { say } from "../texts.js";

export function makeSetRow(name, menu) {
  const row = make("div", { class: "set", role: "listitem", "data-set": name });
  const show = (focus = null) => {
    row.replaceChildren(...parts);
    if (focus) row.querySelector(focus).focus();
  };
  const parts = [
    make("button", {
      type: "button", class: "load", title: say("Replace the list with {name}. Shift adds it.", { name }),
      onclick: (event) => menu.load(name, event.shiftKey),
      onkeydown: (event) => {
        if (event.key === "Enter" && event.shiftKey) menu.load(name, true);
        else if (event.key === "F2") askName();
        else if (event.key === "Delete") askRemoval();
        else return;
        claim(event);
      },
    }, name),
    button("append", "+", say("Add {name} to the list", { name }), () => menu.load(name, true)),
    button("rename", "✎", say("Rename {name}", { name }), () => askName()),
    button("delete", "×", say("Delete {name}", { name }), () => askRemoval()),
  ];

  function askName() {
    const label = say("New name of {name}", { name });
    const leave = () => show(".load");
    const field = make("input", {
      type: "text", value: name, "aria-label": label, spellcheck: "false",
      onkeydown: (event) => {
        if (event.key === "Enter") menu.rename(name, field.value.trim());
        else if (event.key === "Escape") leave();
        else return;
        claim(event);
      },
    });
    row.replaceChildren(
      field, word(say("Rename"), () => menu.rename(name, field.value.trim())), word(say("Cancel"), leave));
    field.focus();
    field.select();
  }

  function askRemoval() {
    const keep = word(say("Keep"), () => show(".load"));
    row.replaceChildren(
      make("span", { class: "question" }, say("Delete {name}?", { name })),
      word(say("Delete"), () => menu.remove(name)), keep);
    row.onkeydown = (event) => {
      if (event.key !== "Escape" || !keep.isConnected) return;
      claim(event);
      show(".load");
    };
    keep.focus();
  }

  show();
  return row;
}

const button = (kind, sign, label, onclick) =>
  make("button", { type: "button", class: `small ${kind}`, "aria-label": label, title: label, onclick }, sign);

const word = (text, onclick) => make("button", { type: "button", class: "action", onclick }, text);
