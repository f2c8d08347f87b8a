// The widget LORA_ALLOY_FILE on a node, or on the node of a subgraph that it is promoted to.

import { baseOfConnected } from "./connected.js";
import { FileField } from "./field.js";

export const FILE = "LORA_ALLOY_FILE";
const MARGIN = 6;
const fields = new Set();

/** The files may be others now. */
export function renderFields() {
  for (const field of fields) field.render();
}

/** ``write`` stores a name that was chosen; ``options`` of a widget that stores nothing itself replace its own. */
export function addField(node, name, type, { files, undoable, replaceStale, forwardToCanvas }, write, options = null) {
  const view = new FileField({
    label: () => labelOf(node, name),
    files,
    onEdit: (text) => undoable(() => write(text)),
    askModel: () => baseOfConnected(node),
  });
  const height = () => view.height + 2 * MARGIN;
  const widget = node.addDOMWidget(name, type, view.root, {
    getMinHeight: height, getMaxHeight: height, margin: MARGIN, hideOnZoom: false,
    ...(options ?? {
      getValue: () => view.text,
      setValue: (text) => {
        view.setText(typeof text === "string" ? text : "");
        requestAnimationFrame(() => replaceStale(node, view.root));
      },
    }),
  });
  fields.add(view);
  requestAnimationFrame(() => view.render()); // by then the node has its labels
  const { onRemove } = widget;
  widget.onRemove = function () {
    fields.delete(view);
    onRemove?.call(this);
  };
  forwardToCanvas(view);
  return { widget, view };
}

/** The name of an input in the editor's language; a promoted one has its editor beside it. */
function labelOf(node, name) {
  const own = name.replace(/ rows$/, "");
  const input = node.inputs?.find(({ widget }) => widget?.name === own);
  return input?.label ?? input?.localized_name ?? own;
}
