// The seed of a merge is hidden where it changes nothing: only some methods draw at random. Its value stays, and
// its place among the saved values.

import { notesOf } from "./method_choice.js";
import { after } from "./method_values.js";

const OFTEN_RANDOM = "peft"; // its dare types draw at random

export function hideUnusedSeed(node) {
  const method = node.widgets?.find(({ name }) => name === "method");
  const notes = notesOf(node);
  const seed = node.widgets?.find(({ name }) => name === "seed");
  if (!method || !notes || !seed) return;
  const seeds = [seed, ...(seed.linkedWidgets ?? [])]; // what changes it after a run
  const random = new Set(notes.filter((note) => note.random).map(({ name }) => name)).add(OFTEN_RANDOM);
  const isLinked = () => node.inputs?.some(({ name, link }) => (name === "sweep" || name === "seed") && link != null);

  function update(resize) {
    const hidden = !random.has(method.value) && !isLinked();
    if (seeds[0].hidden === hidden) return;
    const before = node.computeSize()[1];
    for (const widget of seeds) {
      widget.hidden = hidden;
      if (widget.options) widget.options.hidden = hidden;
    }
    const more = node.computeSize()[1] - before;
    if (resize && !LiteGraph.vueNodesMode) node.setSize([node.size[0], node.size[1] + more]);
  }

  update(true);
  after(method, "callback", () => update(true));
  after(node, "onConfigure", () => update(false));
  after(node, "onConnectionsChange", () => update(true));
}
