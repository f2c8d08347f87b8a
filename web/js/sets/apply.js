// Rows from elsewhere into a list, and a recipe's settings into the widgets of its node, as one step to undo.

import { app } from "../../../../scripts/app.js";
import { isRow, parseList, plainName } from "../list/text.js";
import { undoable } from "../page.js";

/**
 * Put the rows of a text into the list of ``{view, node}``, after its own or in place of them; ``widgets`` has values
 * for the node's widgets by their names.
 */
export function putRows({ view, node }, text, { replace = false, widgets = null, focus = null } = {}) {
  const entries = parseList(text);
  undoable(() => {
    view.edit(() => { view.entries = replace ? entries : [...view.entries, ...entries]; }, focus);
    if (view.textarea) view.textarea.value = view.text;
    if (widgets) setWidgets(node, widgets);
  });
  if (!replace) view.list.scrollTop = view.list.scrollHeight;
}

export const rowsIn = (text) => parseList(text).filter(isRow).length;

/** Whether a node has widgets for a merge method. */
export const hasMethod = (node) => Boolean(node.widgets?.some(({ name }) => name === "method"));

function setWidgets(node, { method, ...values }) {
  if (!hasMethod(node)) return;
  setWidget(node, "method", method); // brings the widgets of its parameters
  for (const [name, value] of Object.entries(values)) setWidget(node, name, value);
  node.setDirtyCanvas(true, true);
}

function setWidget(node, name, value) {
  const widget = node.widgets.find((other) => other.name === name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
}

/** Let the list know of files that came since it was told of them. */
export async function learnOf(view, names) {
  const known = new Set(view.files().map(plainName));
  if (names.every((name) => known.has(name))) return;
  await app.refreshComboInNodes?.();
}
