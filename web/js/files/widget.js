// The widget LORA_ALLOY_FILE on a node, or on the node of a subgraph that it is promoted to.

import { drawEverywhere } from "../list/hosting.js";
import { watchPromotion } from "../list/promoted.js";
import { after } from "../node/method_values.js";
import { forgetErrors, forwardToCanvas, mainCanvas, replaceStale, undoable } from "../page.js";
import { baseOfConnected } from "./connected.js";
import { FileField } from "./field.js";
import { knownFiles, whenFilesChange } from "./known.js";

export const FILE = "LORA_ALLOY_FILE";
const MARGIN = 6;

/** As ``getCustomWidgets`` of an extension wants it. */
export function makeFileWidget(node, name) {
  const { widget } = addField(node, name, FILE, (text) => { widget.value = text; }, (view) => ({
    getValue: () => view.text,
    setValue: (text) => {
      view.setText(typeof text === "string" ? text : "");
      requestAnimationFrame(() => replaceStale(node, view));
    },
  }));
  after(node, "onAdded", () => watchPromotion(node.graph, FILE, addPromoted));
  return { widget };
}

function addPromoted(host, name, type, read, write) {
  const { widget, view, draw } = addField(host, name, type, write, () => ({
    getValue: read, setValue: () => {}, serialize: false,
  }));
  widget.serialize = false;
  return { view, draw };
}

function addField(node, name, type, write, options) {
  const asked = { label: () => labelOf(node, name), files: knownFiles, askModel: () => baseOfConnected(node) };
  const store = (text) => undoable(() => {
    write(text);
    forgetErrors(node, widget, text);
  });
  const view = new FileField({ ...asked, onEdit: store });
  view.root.dataset.widget = name;
  const height = () => view.height + 2 * MARGIN;
  const widget = node.addDOMWidget(name, type, view.root, {
    getMinHeight: height, getMaxHeight: height, margin: MARGIN, hideOnZoom: false, ...options(view),
  });
  const drawn = drawEverywhere(widget, view, mainCanvas, () => new FileField({
    ...asked, onEdit: (text) => { store(text); view.setText(text); },
  }));
  after(widget, "onRemove", whenFilesChange(() => drawn.views().forEach((each) => each.render())));
  requestAnimationFrame(() => view.render()); // by then the node has its labels
  forwardToCanvas(view);
  return { widget, view, draw: drawn.draw };
}

/** The name of an input in the editor's language; a promoted one has its editor beside it. */
function labelOf(node, name) {
  const own = name.replace(/ rows$/, "");
  const input = node.inputs?.find(({ widget }) => widget?.name === own);
  return input?.label ?? input?.localized_name ?? own;
}
