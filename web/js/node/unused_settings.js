// Settings of a merge are hidden where they change nothing: the seed where nothing is drawn at random, the space where
// the method has only one. Their values stay, and their places among the saved values.

import { notesOf } from "./method_choice.js";
import { after } from "./method_values.js";

const PEFT = "peft"; // its dare types draw at random; its types say the space, and have a rank of their own

export function hideUnusedSettings(node) {
  const method = node.widgets?.find(({ name }) => name === "method");
  const notes = notesOf(node) ?? [];
  const named = (mark) => new Set(notes.filter((note) => note[mark]).map(({ name }) => name));
  const [random, inFactors] = [named("random").add(PEFT), named("factors")];
  const isLinked = (wanted) => node.inputs?.some(({ name, link }) => name === wanted && link != null);
  const rules = { auto_strength: () => isLinked("recording") };
  if (method && notes.length) {
    Object.assign(rules, {
      seed: () => isLinked("sweep") || random.has(method.value),
      space: () => isLinked("sweep") || inFactors.has(method.value),
      rank: () => isLinked("sweep") || method.value !== PEFT,
      speed_loras: () => isLinked("sweep") || !["linear", PEFT].includes(method.value), // a sum has no vote
    });
  }
  const settings = Object.entries(rules).flatMap(([name, isUsed]) => {
    const widget = node.widgets?.find((each) => each.name === name);
    return widget ? [{ widget, isUsed: () => isLinked(name) || isUsed() || isRefused(node, widget) }] : [];
  });
  if (!settings.length) return;

  function update(resize) {
    const before = node.computeSize()[1];
    for (const { widget, isUsed } of settings) hide(widget, !isUsed());
    const more = node.computeSize()[1] - before;
    if (more && resize && !LiteGraph.vueNodesMode) node.setSize([node.size[0], node.size[1] + more]);
  }

  update(true);
  if (method) after(method, "callback", () => update(true));
  after(node, "onConfigure", () => update(false));
  after(node, "onConnectionsChange", () => update(true));
}

/** A value that the merge would refuse, or a switch that is on, is never hidden. */
function isRefused(node, { name, value }) {
  if (name === "seed") return false; // any will do where none is used
  const { required, optional } = node.constructor.nodeData.input;
  return value !== (required?.[name] ?? optional?.[name])[1].default;
}

function hide(widget, hidden) {
  for (const each of [widget, ...(widget.linkedWidgets ?? [])]) { // with what changes a seed after a run
    each.hidden = hidden;
    if (each.options) each.options.hidden = hidden;
  }
}
