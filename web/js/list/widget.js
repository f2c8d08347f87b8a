// The widget LORA_ALLOY_LIST on a node, or on the node of a subgraph that it is promoted to.

import { baseOfConnected } from "../files/connected.js";
import { knownFiles, whenFilesChange } from "../files/known.js";
import { after } from "../node/method_values.js";
import { fitHeight, forgetErrors, forwardToCanvas, mainCanvas, replaceStale, undoable } from "../page.js";
import { loadSources, openSets } from "../sets/menu.js";
import { takeDropped } from "../sets/taken.js";
import { rememberFocus, takeFocus } from "./focus_over.js";
import { drawEverywhere, followLink } from "./hosting.js";
import { promoteLists, watchPromotion } from "./promoted.js";
import { ListView } from "./view.js";

export const LIST = "LORA_ALLOY_LIST";
const PAIR = "model_low"; // the input that makes a list one for two models
const MARGIN = 6;
const HOST_WIDTH = 340; // least width of a subgraph's node with a list

/** As ``getCustomWidgets`` of an extension wants it. */
export function makeListWidget(node, name) {
  const { widget } = addList(node, name, LIST, (text) => { widget.value = text; }, (view) => ({
    getValue: () => view.text,
    setValue: (text) => {
      view.setText(typeof text === "string" ? text : "");
      requestAnimationFrame(() => replaceStale(node, view));
    },
  }));
  after(node, "onAdded", () => watchPromotion(node.graph, LIST, addPromoted));
  return { widget, minWidth: 360, minHeight: 1 };
}

/** A node that became a subgraph shows the lists in it. */
export function promoteOnConversion() {
  mainCanvas().addEventListener("subgraph-converted", ({ detail }) => promoteLists(detail.subgraphNode, LIST));
}

function addPromoted(host, name, type, read, write) {
  const { widget, view, draw } = addList(host, name, type, write, () => ({
    getValue: read, setValue: () => {}, serialize: false,
  }));
  widget.serialize = false;
  if (host.size[0] < HOST_WIDTH) host.setSize([HOST_WIDTH, host.size[1]]);
  return { view, draw };
}

function addList(node, name, type, write, options) {
  const key = () => `${node.id} ${name}`;
  const store = (text) => undoable(() => {
    write(text);
    forgetErrors(node, widget, text);
    fitHeight(node); // now, or the height would be a step of its own
  });
  const makeView = (more) => {
    const made = new ListView({
      files: knownFiles,
      askModel: () => baseOfConnected(node),
      isPair: () => Boolean(node.inputs?.some(({ name: input, link }) => input === PAIR && link != null)),
      onSets: (anchor) => openSets({ view: made, node }, anchor),
      onSources: (file, anchor) => loadSources({ view: made, node }, file, anchor),
      ...more,
    });
    takeDropped({ view: made, node });
    return made;
  };
  const view = makeView({
    onEdit: store,
    onText: (text) => {
      takeFocus(view, key);
      drawn?.views().forEach((other) => other.setText(text));
    },
    onResize: () => requestAnimationFrame(() => fitHeight(node)),
    onShown: () => {
      followLink(node, name, view);
      takeFocus(view, key);
    },
  });
  view.root.dataset.widget = name;
  const widget = node.addDOMWidget(name, type, view.root, {
    getMinHeight: () => view.height + 2 * MARGIN, margin: MARGIN, hideOnZoom: false, ...options(view),
  });
  const drawn = drawEverywhere(widget, view, mainCanvas, () => makeView({
    onEdit: (text) => { store(text); view.setText(text); },
  }));
  const stopHearing = whenFilesChange(() => drawn.views().forEach((each) => each.render()));
  after(widget, "onRemove", stopHearing);
  rememberFocus(view, key);
  after(node, "onConnectionsChange", () => requestAnimationFrame(() => {
    followLink(node, name, view);
    drawn.views().forEach((each) => each.render());
  }));
  forwardToCanvas(view);
  return { widget, view, draw: drawn.draw };
}
