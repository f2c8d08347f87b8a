// Nodes 2.0 hides advanced inputs, but asks for the height that the node would have with them, when it is made
// and whenever a choice brings other parameters along. It grows by itself to what is really shown.

const LINE = 24; // of a widget, as ComfyUI counts it

export function stayLow(node) {
  const { computeSize } = node;
  const isFolded = ({ options, hidden }) => !hidden && (options?.advanced || options?.canvasOnly);
  const count = () => (LiteGraph.vueNodesMode ? node.widgets?.filter(isFolded).length ?? 0 : 0);
  node.computeSize = function (...given) {
    const size = computeSize.apply(this, given);
    size[1] -= count() * LINE;
    return size;
  };
  if (count()) node.setSize([node.size[0], node.size[1] - count() * LINE]);
}
