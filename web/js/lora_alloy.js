// The widget LORA_ALLOY_LIST: an editor over the text of the input "loras". The widget of one file is in files/.
// ComfyUI loads every script of this folder; only this one does something by itself.

import { app } from "../../../scripts/app.js";
import { forgetBases } from "./files/bases.js";
import { prepareCatalog } from "./files/catalog.js";
import { baseOfConnected } from "./files/connected.js";
import { addField, FILE, renderFields } from "./files/widget.js";
import { watchPromotion } from "./list/promoted.js";
import { ListView } from "./list/view.js";
import { stayLow } from "./node/advanced_height.js";
import { keepMethodValues } from "./node/method_values.js";
import { translateTooltips } from "./node/parameter_tooltips.js";
import { showPictures } from "./node/pictures.js";
import { addStopButton } from "./node/stop_button.js";
import { speak } from "./texts.js";

const WIDGET = "LORA_ALLOY_LIST";
const MARGIN = 6;
const HOST_WIDTH = 300; // least width of a subgraph's node with a list
const shared = { files: [], views: new Set() };

speak(() => app.extensionManager?.setting?.get("Comfy.Locale"));

app.registerExtension({
  name: "LoraAlloy.List",
  getCustomWidgets: () => ({ [WIDGET]: makeWidget, [FILE]: makeFileWidget }),
  addCustomNodeDefs: takeFiles,
  nodeCreated: (node) => {
    if (!node.constructor.comfyClass?.startsWith("LoraAlloy")) return;
    keepMethodValues(node);
    translateTooltips(node);
    addStopButton(node);
    stayLow(node);
    showPictures(node);
  },
  refreshComboInNodes: takeFiles,
});

/** The names of the files come with the definition of one node, for every widget of the page. */
function takeFiles(definitions) {
  const options = definitions?.LoraAlloyLoader?.input?.required?.loras?.[1]?.lora_options;
  if (!options) return;
  shared.files = options;
  forgetBases();
  prepareCatalog(options);
  for (const view of shared.views) view.render();
  renderFields();
}

function makeWidget(node, name) {
  const { widget } = addList(node, name, WIDGET, (text) => { widget.value = text; }, (view) => ({
    getValue: () => view.text,
    setValue: (text) => {
      view.setText(typeof text === "string" ? text : "");
      requestAnimationFrame(() => replaceStale(node, view.root));
    },
  }));
  const { onAdded } = node;
  node.onAdded = function (graph) {
    watchPromotion(graph, WIDGET, addPromoted);
    return onAdded?.call(this, graph);
  };
  return { widget, minWidth: 360, minHeight: 1 };
}

function addPromoted(host, name, type, read, write) {
  const { widget, view } = addList(host, name, type, write, () => ({
    getValue: read, setValue: () => {}, serialize: false,
  }));
  widget.serialize = false;
  if (host.size[0] < HOST_WIDTH) host.setSize([HOST_WIDTH, host.size[1]]);
  return view;
}

function makeFileWidget(node, name) {
  const page = { files: () => shared.files, undoable, replaceStale, forwardToCanvas };
  const { widget } = addField(node, name, FILE, page, (text) => { widget.value = text; });
  const { onAdded } = node;
  node.onAdded = function (graph) {
    watchPromotion(graph, FILE, (host, other, type, read, write) => {
      const unstored = { getValue: read, setValue: () => {}, serialize: false };
      const promoted = addField(host, other, type, page, write, unstored);
      promoted.widget.serialize = false;
      return promoted.view;
    });
    return onAdded?.call(this, graph);
  };
  return { widget };
}

function addList(node, name, type, write, options) {
  const view = new ListView({
    files: () => shared.files,
    onEdit: (text) => undoable(() => write(text)),
    onResize: () => requestAnimationFrame(() => fit(node)),
    askModel: () => baseOfConnected(node),
  });
  const widget = node.addDOMWidget(name, type, view.root, {
    getMinHeight: () => view.height + 2 * MARGIN, margin: MARGIN, hideOnZoom: false, ...options(view),
  });
  shared.views.add(view);
  const { onRemove } = widget;
  widget.onRemove = function () {
    shared.views.delete(view);
    onRemove?.call(this);
  };
  forwardToCanvas(view);
  return { widget, view };
}

/** Clicks in the DOM come at the wrong moment for ComfyUI's own change tracker. */
function undoable(change) {
  app.canvas.emitBeforeChange();
  try {
    change();
  } finally {
    app.canvas.emitAfterChange();
  }
}

/** On the canvas, a node that was as low as it could be stays so; one that was made larger only grows. */
function fit(node) {
  if (LiteGraph.vueNodesMode || !node.graph || node.flags?.collapsed) return;
  const needed = node.computeSize()[1];
  const wasTight = node.size[1] <= (node.loraAlloyHeight ?? 0) + 1;
  node.loraAlloyHeight = needed;
  if (wasTight || node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas(true, true);
}

/**
 * After undo, Nodes 2.0 goes on showing the element of the node that was replaced. Pasting makes passing nodes
 * with the number of the one that was copied; they are in no graph.
 */
function replaceStale(node, root) {
  if (root.isConnected || node.graph?.getNodeById(node.id) !== node) return;
  for (const host of document.querySelectorAll(`[data-node-id="${CSS.escape(String(node.id))}"]`)) {
    host.querySelector(".lora-alloy")?.replaceWith(root);
  }
}

/** Wheel and middle button belong to the canvas, where the list has nothing to scroll. */
function forwardToCanvas({ root, list }) {
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
