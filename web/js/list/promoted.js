// The list on a subgraph's node: ComfyUI keeps the value of a promoted widget, but draws nothing for a widget
// that it does not know. A second widget beside it, which stores nothing, is its editor.

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
  const view = addEditor(host, name + SUFFIX, type + SUFFIX, read, (text) => { stored().value = text; });
  const follow = () => requestAnimationFrame(() => view.setText(read()));
  const { onConfigure } = host;
  host.onConfigure = function (...given) {
    follow();
    return onConfigure?.apply(this, given);
  };
  follow();
}
