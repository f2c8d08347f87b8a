// The button of Distill LoRAs: the training ends, and the node goes on with the best that it has learned.

import { api } from "../../../../scripts/api.js";
import { say } from "../texts.js";

const PATH = "/lora_alloy/stop";

export function addStopButton(node) {
  if (node.constructor.comfyClass !== "LoraAlloyDistill") return;
  const label = say("Stop and keep");
  const button = node.addWidget("button", label, null, () => stop(node), { serialize: false });
  button.serialize = false;
  button.tooltip = say("End the training now and keep the best so far. Cancel keeps nothing.");
}

async function stop(node) {
  await api.fetchApi(PATH, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ node: String(node.id) }),
  });
}
