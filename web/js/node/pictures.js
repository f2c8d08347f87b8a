// Nodes that show a picture: large enough to read it, and drawn in the editor's theme. The server does not know
// the theme, so it is sent with the prompt; what the widget itself holds never changes.

import { api } from "../../../../scripts/api.js";
import { after } from "./method_values.js";

const NODES = ["LoraAlloyInspect", "LoraAlloyMeasure"];
const WIDTH = 540; // pictures are 960 pixels wide, for screens with two pixels to a point
const HEIGHT = 500;
const FRAME = 48; // what is above and below a picture, such as its size
const PREVIEW = "$$canvas-image-preview"; // the classic canvas counts this widget with a height of its own
const PREVIEW_HEIGHT = 220;

export function showPictures(node) {
  if (!NODES.includes(node.constructor.comfyClass)) return;
  const theme = node.widgets?.find(({ name }) => name === "theme");
  if (theme) {
    theme.hidden = true; // some frontends heed only one of the two
    theme.options = { ...theme.options, hidden: true };
    theme.serializeValue = currentTheme;
  }
  keepHeight(node);
  node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], HEIGHT)]);
  let made = node.size[1];
  after(node, "onConfigure", () => { made = null; }); // from a file, or pasted: it has the height that it had
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.call(this, output);
    if (output?.images?.[0]) grow(output.images[0]);
  };

  /** A node that still has the height that it was made with grows for a taller picture. */
  async function grow(image) {
    const shown = new Image();
    shown.src = api.apiURL(`/view?${new URLSearchParams(image)}`);
    await shown.decode().catch(() => null);
    if (made === null || Math.abs(node.size[1] - made) > 1 || !shown.naturalWidth) return;
    const preview = node.widgets.some(({ name }) => name === PREVIEW) ? PREVIEW_HEIGHT : 0;
    const picture = (node.size[0] * shown.naturalHeight) / shown.naturalWidth;
    const needed = Math.round(node.computeSize()[1] - preview + picture + FRAME);
    if (needed > made) node.setSize([node.size[0], needed]);
    made = node.size[1];
  }
}

/** Another view has other widgets, and ComfyUI makes the node as low as they allow: that is not what it asks for. */
function keepHeight(node) {
  const { computeSize } = node;
  node.computeSize = function (given, ...more) {
    const height = given?.[1] ?? 0; // of the node, where a choice has changed what is below it
    const size = computeSize.call(this, given, ...more);
    size[1] = Math.max(size[1], height);
    return size;
  };
}

/** Light or dark, by the colour of text in the palette that is on, which may be one of the user's own. */
export function currentTheme() {
  const probe = document.createElement("span");
  probe.style.color = "var(--input-text, #ddd)";
  document.body.append(probe);
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g)?.map(Number) ?? [255, 255, 255];
  probe.remove();
  return 0.299 * red + 0.587 * green + 0.114 * blue > 127 ? "dark" : "light";
}
