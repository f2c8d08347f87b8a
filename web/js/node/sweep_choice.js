// What a sweep can vary, as far as the graph tells: the parameters of the method, the settings of the merge, and
// for each LoRA of its list the strengths. The value stays text; anything may still be typed.

import { parseList, isRow, plainName } from "../list/text.js";
import { undoable } from "../page.js";
import { say } from "../texts.js";
import { addChoiceButton } from "./choices.js";
import { notesOf } from "./method_choice.js";

const RANGE = "0.2, 0.5, 0.8";
const EXAMPLES = {
  method: "linear, even, ties", space: "delta, factors", rank: "8, 16, 32", seed: "1..4", strength: "0.6..1.4 step 0.2",
  majority_sign_method: "total, frequency", combination_type: "linear, ties_svd", style: "first, last",
  ridge: "0.1, 1, 10", mu: "0.2, 0.5, 1, 2", iterations: "1, 5, 20", outliers: "0, 0.01, 0.05",
  epsilon: "0.05, 0.15, 0.3", svd_rank: "8, 16, 32", svd_clamp: "0, 0.95, 0.99",
};
const OF_ONE = { strength: "0.4..1 step 0.2", clip: "0, 0.5, 1", blocks: "down:0..1 step 0.5" };

export function addSweepChoice(node) {
  if (node.constructor.comfyClass !== "LoraAlloySweep") return;
  const widget = (name) => node.widgets.find((each) => each.name === name);
  const label = say("What can vary");
  addChoiceButton(node, label, say("Parameters of the method, settings of the merge, and strengths of each LoRA."), () => ({
    intro: say("Choose what to vary, then write its values. Connect a merge to see its method and LoRAs."),
    current: widget("parameter").value,
    items: suggestions(node),
    onPick: ({ value, values }) => {
      const wasExample = knownExamples().has(widget("values").value.trim());
      undoable(() => {
        set(node, widget("parameter"), value);
        if (wasExample) set(node, widget("values"), values);
      });
    },
  }));
}

function set(node, widget, value) {
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas?.(true, true);
}

const knownExamples = () => new Set(["", RANGE, ...Object.values(EXAMPLES), ...Object.values(OF_ONE)]);

function suggestions(node) {
  const merge = mergeAfter(node);
  const heading = say("The merge");
  const item = (value, text, more = heading) => ({ value, text, heading: more, values: EXAMPLES[value] ?? RANGE });
  const found = [
    item("strength", say("strength of the whole merge")),
    item("method", say("the method itself")),
    item("rank", say("rank of the result; 0 keeps it exact")),
    item("seed", say("of the methods that drop entries at random")),
  ];
  const { name, params } = methodOf(node, merge);
  for (const { name: param, tooltip } of params) {
    found.push(item(param, say(tooltip), say("Parameters of {method}", { method: name })));
  }
  for (const lora of lorasOf(merge)) {
    const texts = {
      strength: say("its strength"), clip: say("its strength for the text encoder"),
      blocks: say("its strengths block by block, such as down:0..1 step 0.5"),
    };
    for (const [setting, text] of Object.entries(texts)) {
      found.push({ value: `${setting} ${lora}`, text, heading: lora, values: OF_ONE[setting] });
    }
  }
  return found;
}

const linked = (node, name) => {
  const { link } = node?.inputs?.find((input) => input.name === name) ?? {};
  const made = link == null ? null : node.graph.getLink?.(link) ?? node.graph.links.get(link);
  return made && node.graph.getNodeById(made.origin_id);
};

const MERGES = ["LoraAlloyLoader", "LoraAlloyMerge", "LoraAlloyMergeLoaded"];

/** The merge that a sweep ends at, through other sweeps. */
function mergeAfter(node, depth = 0) {
  for (const output of node.outputs ?? []) {
    for (const id of output.links ?? []) {
      const link = node.graph.getLink?.(id) ?? node.graph.links.get(id);
      const target = node.graph.getNodeById(link?.target_id);
      const kind = target?.constructor.comfyClass;
      if (MERGES.includes(kind)) return target;
      const further = kind === "LoraAlloySweep" && depth < 8 ? mergeAfter(target, depth + 1) : null;
      if (further) return further;
    }
  }
  return null;
}

/** The method's name and its parameters: of Merge Method before the sweeps, or of the merge's own widget. */
function methodOf(node, merge) {
  let owner = linked(node, "method");
  for (let i = 0; owner?.constructor.comfyClass === "LoraAlloySweep" && i < 8; i++) owner = linked(owner, "method");
  if (!owner || !notesOf(owner)) owner = merge && notesOf(merge) ? merge : null;
  const widgets = owner?.widgets ?? [];
  const params = widgets.filter(({ name }) => name.startsWith("method."))
    .map(({ name, tooltip }) => ({ name: name.slice("method.".length), tooltip: tooltip ?? "" }));
  return { name: widgets.find(({ name }) => name === "method")?.value, params };
}

/** What the LoRAs that are on are called, without folder and ending; the number where two are called the same. */
function lorasOf(merge) {
  const names = rowsOf(merge).map((name) => plainName(name).split("/").pop().replace(/\.(safetensors|sft)$/, ""));
  return names.map((name, i) => (names.indexOf(name) === names.lastIndexOf(name) ? name : String(i + 1)));
}

/** A stack comes before the list of the node that it is connected to. */
function rowsOf(node, depth = 0) {
  if (!node || depth > 8) return [];
  const text = node.widgets?.find(({ name }) => name === "loras")?.value ?? "";
  const rows = parseList(String(text)).filter((entry) => isRow(entry) && entry.on && (entry.strength || entry.clip));
  return [...rowsOf(linked(node, "stack"), depth + 1), ...rows.map(({ name }) => name)];
}
