// The list on a subgraph's node: ComfyUI keeps the value of a promoted widget, but draws nothing for a widget
// that it does not know. A second widget beside it, which stores nothing, is its editor.

import { replaceStale } from "../page.js";

const SUFFIX = " rows";
const heard = {}; // type of the widget -> graphs

/** Draw an editor wherever the list of a node in this graph is promoted; ``addEditor`` makes one. */
export function watchPromotion(graph, type, addEditor) {
  heard[type] ??= new WeakSet();
  if (!graph?.events || heard[type].has(graph)) return;
  heard[type].add(graph);
  graph.events.addEventListener("widget-promoted", ({ detail: { subgraphNode } }) => {
    for (const { name } of promoted(subgraphNode, type)) draw(subgraphNode, name, type, addEditor);
    watchPromotion(subgraphNode.graph, type, addEditor); // it may be promoted once more
  });
  graph.events.addEventListener("widget-demoted", ({ detail: { subgraphNode } }) => {
    requestAnimationFrame(() => removeOrphans(subgraphNode, type));
  });
}

const promoted = (host, type) => host.widgets.filter((widget) => widget.type === type && !widget.element);

function removeOrphans(host, type) {
  const names = promoted(host, type).map(({ name }) => name + SUFFIX);
  for (const widget of host.widgets) {
    if (widget.type === type + SUFFIX && !names.includes(widget.name)) host.removeWidget(widget);
  }
}

function draw(host, name, type, addEditor) {
  if (host.widgets.some((widget) => widget.name === name + SUFFIX)) return;
  const stored = () => host.widgets.find((widget) => widget.name === name);
  const read = () => String(stored()?.value ?? "");
  const editor = addEditor(host, name + SUFFIX, type + SUFFIX, read, (text) => {
    stored().value = text;
    writeInside(host, name, text);
  });
  const follow = () => requestAnimationFrame(() => {
    if (!stored()) return;
    editor.view.setText(read());
    replaceStale(host, editor.view);
    stored().draw = editor.draw; // in the side panel, which knows of this widget only
  });
  const { onConfigure } = host;
  host.onConfigure = function (...given) {
    follow();
    return onConfigure?.apply(this, given);
  };
  follow();
}

/**
 * The rows inside are those outside: unpacking the subgraph would bring back the old ones in frontends up to 1.49,
 * and nobody could see inside what is queued.
 */
function writeInside(host, name, text) {
  const input = host.subgraph.inputs.find((other) => other.name === name);
  for (const id of input?.linkIds ?? []) {
    const link = host.subgraph.getLink(id);
    const inner = link && host.subgraph.getNodeById(link.target_id);
    const slot = inner?.inputs[link.target_slot];
    const widget = inner?.widgets?.find((other) => other.name === slot?.widget?.name);
    if (!widget || widget.value === text) continue;
    widget.value = text;
    if (inner.subgraph) writeInside(inner, slot.name, text);
  }
}

/**
 * A node that became a subgraph with lists in it shows them; ComfyUI by itself shows little more than the seed. A
 * frontend that cannot show one (before 1.49) leaves it where it is.
 */
export function promoteLists(host, type) {
  for (const inner of host.subgraph.nodes) {
    for (const { name, value } of inner.widgets?.filter((widget) => widget.type === type) ?? []) {
      const slot = inner.inputs?.find((input) => input.widget?.name === name);
      if (!slot || slot.link != null) continue;
      const input = host.subgraph.addInput(freeName(name, host.subgraph.inputs), String(slot.type));
      input.connect(slot, inner);
      const [stored, rows] = [input.name, input.name + SUFFIX]
        .map((wanted) => host.widgets.find((widget) => widget.name === wanted));
      if (!rows || stored?.value !== value) host.subgraph.removeInput(input);
    }
  }
}

function freeName(name, inputs) {
  const isTaken = (other) => inputs.some((input) => input.name === other);
  let free = name;
  for (let i = 1; isTaken(free); i++) free = `${name}_${i}`;
  return free;
}
