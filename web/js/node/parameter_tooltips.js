// Tooltips of the parameters of a method or a view, in the editor's language: ComfyUI makes these widgets with
// the English text of the node's definition, and looks for no other.

import { say } from "../texts.js";
import { after } from "./method_values.js";

export function translateTooltips(node) {
  const choices = node.widgets?.filter(({ name }) => name === "method" || name === "view") ?? [];
  const translate = () => {
    for (const widget of node.widgets.filter(({ name, tooltip }) => name.includes(".") && tooltip)) {
      widget.tooltip = say(widget.tooltip);
    }
  };
  translate();
  after(node, "onConfigure", translate);
  for (const choice of choices) after(choice, "callback", translate);
}
