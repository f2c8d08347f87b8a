// What a node says, on the node: what it is doing while it runs, then the result and the warnings, or the error.
// ComfyUI's own text previews are not used: newer editors clear them when a run ends.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { loadStyle, make } from "../dom.js";
import { fitHeight, forwardToCanvas, replaceStale } from "../page.js";
import { say } from "../texts.js";

loadStyle("../base.css", import.meta.url);
loadStyle("./report.css", import.meta.url);

const SILENT = new Set(["LoraAlloyMethod", "LoraAlloyGrid"]);
const NO_ID = "00000000-0000-0000-0000-000000000000";
const MARGIN = 6;
const LINE = 16;
const SHOWN_LINES = 10; // a longer text scrolls, unless the node is made larger

const kept = new Map(); // what nodes say, by graph and number: undo makes new nodes of the same number

/** Give a node that says something a place to say it; the last of its widgets, which no workflow stores. */
export function addReport(node) {
  if (SILENT.has(node.constructor.comfyClass)) return;
  const report = new Report(node);
  node.loraAlloyReport = report;
  const { onExecuted, onConfigure, onResize, onSerialize } = node;
  node.onExecuted = function (output) {
    onExecuted?.call(this, output);
    report.show(resultOf(output));
  };
  node.onConfigure = function (...given) {
    onConfigure?.apply(this, given);
    requestAnimationFrame(() => report.recall());
  };
  node.onSerialize = function (stored) {
    onSerialize?.call(this, stored);
    stored.size = [stored.size[0], stored.size[1] - report.room];
  };
  node.onResize = function (...given) {
    onResize?.apply(this, given);
    report.measure();
  };
}

class Report {
  constructor(node) {
    this.node = node;
    this.height = 0;
    this.said = [];
    this.root = make("div", { class: "lora-alloy lora-alloy-report", role: "status", "aria-label": say("What the node says") });
    this.root.dataset.widget = "report";
    this.widget = node.addDOMWidget("report", "LORA_ALLOY_REPORT", this.root, {
      getMinHeight: () => Math.min(this.height, SHOWN_LINES * LINE) + 2 * MARGIN,
      getMaxHeight: () => this.height + 2 * MARGIN,
      getValue: () => "", setValue: () => {}, margin: MARGIN, hideOnZoom: false, serialize: false,
    });
    this.widget.serialize = false;
    this.widget.hidden = true;
    forwardToCanvas({ root: this.root, list: this.root });
  }

  /** A graph from a workflow in API format has no id of its own until it is loaded again, as by undo. */
  get keys() {
    const { graph, id } = this.node;
    const path = app.extensionManager?.workflow?.activeWorkflow?.path;
    return graph?.id === NO_ID ? [`${path}:${id}`] : [`${graph?.id}:${id}`, `${path}:${id}`];
  }

  /** ``said`` are texts, each a list of ``[kind, line]``. */
  show(said) {
    const [key, other] = this.keys;
    kept.delete(other);
    if (said.length) kept.set(key, said);
    else kept.delete(key);
    this.draw(said);
  }

  draw(said) {
    this.said = said;
    this.root.replaceChildren(...said.map((lines) => make("div", { class: "entry" },
      ...lines.map(([kind, line]) => make("div", { class: kind }, line || "\u00a0")))));
    this.root.scrollTop = 0;
    this.widget.hidden = !said.length;
    this.measure();
    fitHeight(this.node);
  }

  /** After undo, or when a workflow is opened again: what the node of this number said last. */
  recall() {
    if (!this.node.graph) return;
    this.draw(this.keys.map((key) => kept.get(key)).find(Boolean) ?? []);
    replaceStale(this.node, this);
  }

  get isRunning() {
    return this.said[0]?.[0]?.[0] === "progress";
  }

  /** What the text adds to the height of a node that is as low as it can be: no workflow stores that either. */
  get room() {
    const { node, widget } = this;
    if (LiteGraph.vueNodesMode || widget.hidden || node.size[1] > (node.loraAlloyHeight ?? 0) + 1) return 0;
    const whole = node.computeSize()[1];
    widget.hidden = true;
    const without = node.computeSize()[1];
    widget.hidden = false;
    return whole - without;
  }

  /** The height that the text needs at the width of the node, also while it is not on the screen. */
  measure() {
    const width = this.node.size[0] - 2 * MARGIN;
    if (!this.said.length || LiteGraph.vueNodesMode) {
      this.height = this.said.length ? LINE : 0;
      return;
    }
    const copy = this.root.cloneNode(true);
    Object.assign(copy.style, { position: "fixed", display: "block", visibility: "hidden", width: `${width}px`, height: "auto" });
    document.body.append(copy);
    this.height = copy.offsetHeight;
    copy.remove();
  }
}

/** The output of a run as texts: one for each value of a sweep, the first line of each is the result. */
function resultOf(output) {
  const warnings = new Set(output?.warnings ?? []);
  return (output?.text ?? []).filter(Boolean).map((text) => text.split("\n").map((line, place) => [
    place === 0 ? "result" : warnings.has(line) ? "warning" : "note", line,
  ]));
}

/** The report of a node by the number that a run has for it: "12:3" is node 3 in the subgraph of node 12. */
function reportOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? null;
    graph = node?.subgraph;
  }
  return node?.loraAlloyReport ?? null;
}

function allReports() {
  const root = app.rootGraph ?? app.graph;
  const graphs = [root, ...(root.subgraphs?.values() ?? [])];
  return graphs.flatMap(({ nodes }) => nodes.map((node) => node.loraAlloyReport).filter(Boolean));
}

function on(event, answer) {
  api.addEventListener(event, ({ detail }) => answer(detail ?? {}));
}

/** What was being done is over. */
function endProgress() {
  for (const report of allReports()) if (report.isRunning) report.show([]);
}

// nothing that an earlier run said stays on a node that runs anew, or that this run does not reach
on("execution_cached", ({ nodes = [] }) => {
  const cached = new Set(nodes.map(reportOf));
  for (const report of allReports()) if (!cached.has(report)) report.show([]);
});
on("lora_alloy.progress", ({ node, text }) => reportOf(node)?.show([[["progress", text]]]));
on("execution_success", endProgress);
on("execution_error", ({ node_id: id, exception_message: message }) => {
  endProgress();
  reportOf(id)?.show([String(message ?? "").trim().split("\n").map((line) => ["error", line])]);
});
on("execution_interrupted", ({ node_id: id }) => {
  endProgress();
  reportOf(id)?.show([[["progress", say("Interrupted.")]]]);
});
