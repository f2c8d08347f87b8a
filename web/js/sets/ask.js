// Questions to the pack's own requests, and what is said to the user outside of a list.

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { say } from "../texts.js";

const SHOWN = 12_000; // ms

/** The answer of a request; an Error with one sentence if it is refused or nobody answers. */
export async function ask(path, body, signal) {
  const answer = await reach(() => api.fetchApi(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  }));
  const said = await answer.json().catch(() => null);
  if (!answer.ok || !said) throw new Error(said?.error ?? say("ComfyUI answered with error {status}.", answer));
  return said;
}

/** A request of ComfyUI's; where there is no connection, an Error that says so. */
export async function reach(request) {
  try {
    return await request();
  } catch (error) {
    if (error instanceof TypeError) throw new Error(say("ComfyUI does not answer. Is it still running?"));
    throw error;
  }
}

/** ``severity`` is info, warn or error. */
export function tell(severity, summary, detail = "") {
  app.extensionManager.toast.add({ severity, summary, detail, life: SHOWN });
}
