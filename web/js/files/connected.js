// The base model of what is connected to a node. The graph only tells which file a loader loads; what that file is,
// the server reads from its header. Where anything is unclear the answer is null.

import { api } from "../../../../scripts/api.js";

const PATH = "/lora_alloy/base_of_model";
const KINDS = { ckpt_name: "checkpoints", unet_name: "diffusion_models" }; // widget -> folder of its files
const FAR = 50; // nodes in a row; a longer way is a circle
const INSIDE = "-10"; // ComfyUI's number for the inputs of a subgraph, seen from within
const isInside = (link) => String(link?.origin_id) === INSIDE; // a text since 1.49
const isModel = ({ type }) => type === "MODEL" || type === "*";

/**
 * ``{base, fits}`` of the model that a node patches, or that the nodes it leads to patch: what it is called, and the
 * base models of the LoRAs that fit it.
 */
export async function baseOfConnected(node) {
  const found = fileOfConnected(node);
  if (!found) return null;
  const answer = await api.fetchApi(`${PATH}?${new URLSearchParams(found)}`).catch(() => null);
  const told = answer?.ok ? await answer.json() : null;
  return told?.base ? told : null;
}

/** ``{kind, name}`` of the file that the connected model is loaded from, or null. */
export function fileOfConnected(node) {
  const patched = firstWithModel(node);
  return patched && fileBehind(patched, patched.inputs.findIndex(({ type }) => type === "MODEL"));
}

/** The node itself, or the first one that its outputs lead to, that is given a model. */
function firstWithModel(node) {
  const nodes = new Set([node]);
  for (const each of nodes) {
    if (each.inputs?.some(({ type, link }) => type === "MODEL" && link != null)) return each;
    for (const id of (each.outputs ?? []).flatMap(({ links }) => links ?? [])) {
      const target = each.graph.getNodeById(linkOf(each.graph, id)?.target_id);
      if (target && nodes.size < FAR) nodes.add(target);
    }
  }
  return null;
}

function fileBehind(node, slot) {
  let at = { node, slot };
  for (let i = 0; at && i < FAR; i++) {
    const origin = originOf(at.node, at.slot);
    if (!origin) return null;
    const next = origin.node.inputs?.findIndex(isModel) ?? -1;
    if (next < 0) return fileOf(origin.node);
    at = { node: origin.node, slot: next };
  }
  return null;
}

/** Where the link of an input comes from, through the borders of subgraphs. */
function originOf(node, slot) {
  const { graph } = node;
  const link = linkOf(graph, node.inputs[slot]?.link);
  if (!link) return null;
  if (isInside(link)) {
    const host = hostOf(graph);
    return host && originOf(host, link.origin_slot);
  }
  return outputOf(graph.getNodeById(link.origin_id), link.origin_slot);
}

/** The output itself, or the one within that a subgraph's node hands out. */
function outputOf(node, slot) {
  if (!node?.subgraph) return node ? { node } : null;
  const link = linkOf(node.subgraph, node.subgraph.outputs[slot]?.linkIds?.[0]);
  if (!link) return null;
  if (isInside(link)) return originOf(node, link.origin_slot);
  return outputOf(node.subgraph.getNodeById(link.origin_id), link.origin_slot);
}

/** The one node that shows this subgraph; of several, nobody knows which is meant. */
function hostOf(graph) {
  const root = graph.rootGraph ?? graph;
  const graphs = [root, ...(root.subgraphs?.values() ?? [])];
  const hosts = graphs.flatMap(({ nodes }) => nodes.filter(({ subgraph }) => subgraph === graph));
  return hosts.length === 1 ? hosts[0] : null;
}

const linkOf = (graph, id) => (id == null ? null : graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]);

/** The file that a loader's widget names, or the widget of the subgraph's node that it was made a widget of. */
function fileOf(node) {
  const named = node.widgets?.filter(({ name }) => name in KINDS) ?? [];
  if (named.length !== 1) return null;
  const [{ name, value }] = named;
  const found = givenFrom(node, name, value);
  return typeof found === "string" ? { kind: KINDS[name], name: found } : null;
}

function givenFrom(node, name, value) {
  const input = node.inputs?.find(({ widget }) => widget?.name === name);
  if (input?.link == null) return value;
  const link = linkOf(node.graph, input.link);
  const host = isInside(link) ? hostOf(node.graph) : null;
  const outer = host?.inputs[link.origin_slot];
  const widget = host?.widgets?.find((each) => each.name === outer?.widget?.name);
  return widget ? givenFrom(host, widget.name, widget.value) : null;
}
