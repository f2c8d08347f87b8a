// What widgets in the page need of the graph editor around them.

import { app } from "../../../scripts/app.js";

/** One step that can be undone. Clicks in the DOM come at the wrong moment for ComfyUI's own change tracker. */
export function undoable(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

export const mainCanvas = () => app.canvas.canvas;

/** On the canvas, a node that was as low as it could be stays so; one that was made larger only grows. */
export function fitHeight(node) {
  if (LiteGraph.vueNodesMode || !node.graph || node.flags?.collapsed) return;
  const needed = node.computeSize()[1];
  const wasTight = node.size[1] <= (node.loraAlloyHeight ?? 0) + 1;
  node.loraAlloyHeight = needed;
  if (wasTight || node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas(true, true);
}

/**
 * After undo, Nodes 2.0 goes on showing the element of the node that was replaced: ``root`` takes its place. Its
 * ``data-widget`` names the widget. Pasting makes passing nodes with the number of the one that was copied; they are
 * in no graph.
 */
export function replaceStale(node, { root }) {
  if (root.isConnected || node.graph?.getNodeById(node.id) !== node) return;
  for (const host of document.querySelectorAll(`[data-node-id="${CSS.escape(String(node.id))}"]`)) {
    host.querySelector(`.lora-alloy[data-widget="${root.dataset.widget}"]`)?.replaceWith(root);
  }
}

/** Wheel and middle button belong to the canvas, where the ``list`` of a view has nothing to scroll. */
export function forwardToCanvas({ root, list = null }) {
  root.addEventListener("wheel", (event) => {
    const scrolls = !event.ctrlKey && list && list.scrollHeight > list.clientHeight && list.contains(event.target);
    if (scrolls) event.stopPropagation();
    else if (root.closest(".dom-widget")) {
      event.preventDefault();
      app.canvas.processMouseWheel(event);
    }
  }, { passive: false });
  const isMiddle = (event) => event.button === 1 || (event.buttons & 4) !== 0;
  root.addEventListener("pointerdown", (event) => isMiddle(event) && app.canvas.processMouseDown(event));
  root.addEventListener("pointermove", (event) => isMiddle(event) && app.canvas.processMouseMove(event));
  root.addEventListener("pointerup", (event) => isMiddle(event) && app.canvas.processMouseUp(event));
}

/** The marks of a refused input go with its next edit, as those that ComfyUI's own checks set. */
export function forgetErrors(node, widget, value) {
  const input = node.inputs?.find(({ name }) => name === widget.name);
  for (const { errors } of Object.values(app.lastNodeErrors ?? {})) {
    for (const error of errors.filter(({ type }) => type === "custom_validation_failed")) {
      // the editor itself drops an error of this kind when the widget changes
      if (error.extra_info?.input_name === widget.name) error.type = "value_not_in_list";
    }
  }
  node.onWidgetChanged?.(widget.name, value, value, widget);
  if (!input?.hasErrors && !node.has_errors) return;
  if (input) input.hasErrors = false;
  node.has_errors = false;
  node.setDirtyCanvas(true, true);
}
