// What the list can do, said where it is asked for.

import { claim, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";

const lines = () => [
  [say("Row"), say("Each row is a LoRA file with its strength. Click the name to choose another file.")],
  [say("Strength"), say("Drag it, press the arrow keys, or click and type. Shift makes fine steps.")],
  [say("Arrow keys"), say("Up and down go from row to row; with Alt they move the row.")],
  [say("Right click"), say("The menu of the row, also Shift+F10. Delete removes the row.")],
  [say("Paste"), say("A prompt or a list with <lora:name:0.8> in it adds rows.")],
  [say("Text"), say("One <lora:name:strength:clip strength> per line; # switches a line off.")],
];

export function openHelp(anchor) {
  const rows = lines().flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]);
  const popup = openPopup({
    anchor, className: "lora-alloy-help", children: [make("dl", {}, ...rows)], width: 340, role: "dialog",
    "aria-label": say("Help"), tabindex: "-1", onClose: () => anchor.focus(),
    onkeydown: (event) => {
      if (event.key === "Escape" || event.key === "Tab") popup.close();
      claim(event);
    },
  });
  popup.element.focus();
}
