// How a list lies in the page: in its node, as wide and as dim as the node, and once more in the side panel.

const DIM = { 2: "muted", 4: "bypassed" }; // by the mode of the node

/**
 * The side panel draws widgets that it does not know on canvases of its own, and gives them its width for good.
 * ``makeView`` makes another list over the same text for such a canvas; a set of those in the page is returned.
 */
export function drawEverywhere(widget, view, mainCanvas, makeView) {
  const others = new Map(); // canvas -> list
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
  const { draw } = widget;
  widget.draw = function (context, node, ...given) {
    dim(view.root, node);
    if (!drawInPanel(context)) draw?.call(this, context, node, ...given);
  };

  function drawInPanel({ canvas }) {
    for (const old of others.keys()) if (!old.isConnected) others.delete(old);
    if (canvas === mainCanvas()) return false;
    if (others.has(canvas)) return true;
    const other = makeView();
    other.setText(view.text);
    other.root.inert = view.root.inert;
    other.root.classList.add("in-panel");
    for (const name of ["mousedown", "touchstart"]) { // they would move the item of the panel
      other.root.addEventListener(name, (event) => event.stopPropagation());
    }
    others.set(canvas, other);
    canvas.after(other.root);
    return true;
  }

  return { draw: drawInPanel, views: () => [view, ...others.values()] };
}

function dim(root, node) {
  for (const [mode, name] of Object.entries(DIM)) root.classList.toggle(name, node.mode === Number(mode));
}

/** A list whose text comes over a link shows what it has, and cannot be edited; the canvas does not draw it at all. */
export function followLink(node, name, { root }) {
  const input = node.inputs?.find((slot) => slot.widget?.name === name);
  root.inert = input?.link != null;
}

// Nodes 2.0 shows the tooltip of the input over whatever lies in it; rows have their own
document.addEventListener("mouseenter", (event) => {
  const isHost = event.target.firstElementChild?.classList.contains("lora-alloy");
  if (isHost && event.target.closest("[data-node-id]")) event.stopPropagation();
}, true);
