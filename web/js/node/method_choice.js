// Help with the choice of a merge method: a list with a line about each, what it is recommended for, and what it
// needs. ComfyUI's own list of the widget has the names alone, and goes on working.

import { app } from "../../../../scripts/app.js";
import { undoable } from "../page.js";
import { say } from "../texts.js";
import { addChoiceButton } from "./choices.js";

export function addMethodChoice(node) {
  const method = node.widgets?.find(({ name }) => name === "method");
  const notes = notesOf(node);
  if (!method || !notes) return;
  addChoiceButton(node, say("Choose a method"), say("What each method does, and what it is recommended for."), () => ({
    intro: say("For a merge to keep, and for three LoRAs or more: record the LoRAs and distill them."),
    current: method.value,
    items: notes.map((note) => ({ value: note.name, text: say(note.summary), tags: tagsOf(note) })),
    onPick: ({ value }) => choose(node, method, value),
  }));
}

/** What the node's definition says about the methods. */
export function notesOf(node) {
  const { required, optional } = node.constructor.nodeData?.input ?? {};
  return (required?.method ?? optional?.method)?.[1]?.lora_alloy_methods;
}

function tagsOf({ recommended, recording, random }) {
  const tags = recommended ? [say("recommended {purpose}", { purpose: say(recommended) })] : [];
  if (recording) tags.push(say("needs a recording"));
  if (random) tags.push(say("random: set the seed"));
  return tags;
}

/** As if it had been chosen in ComfyUI's own list, so that one undo takes it back. */
function choose(node, method, value) {
  if (value === method.value) return;
  undoable(() => {
    method.value = value;
    method.callback?.(value, app.canvas, node);
  });
  node.setDirtyCanvas?.(true, true);
}
