// Sets of LoRAs: text files in the user's folder of ComfyUI, each with the text of a list.

import { api } from "../../../../scripts/api.js";
import { say } from "../texts.js";
import { reach } from "./ask.js";

const FOLDER = "lora_alloy/sets";
const ENDING = ".txt";
const LONGEST = 1024 * 1024; // bytes

// ComfyUI decodes a path with a percent sign once more than it was encoded
const pathOf = (name) => `${FOLDER}/${name}${ENDING}`.replaceAll("%", "%25");

/** The names of all sets, in the order of an index. */
export async function listSets() {
  const files = await reach(() => api.listUserDataFullInfo(FOLDER));
  const order = new Intl.Collator(undefined, { numeric: true });
  return files.map(({ path }) => path).filter((path) => path.endsWith(ENDING) && !path.includes("/"))
    .map((path) => path.slice(0, -ENDING.length)).sort(order.compare);
}

/** The text of a set. */
export async function readSet(name) {
  const answer = await reach(() => api.getUserData(pathOf(name), { cache: "no-store" }));
  if (answer.status !== 200) throw refusal(answer.status, name);
  if (Number(answer.headers.get("Content-Length")) > LONGEST) {
    throw new Error(say("{name} is too large for a set of LoRAs.", { name }));
  }
  return answer.text();
}

/** Save a text under a name; ``overwrite`` replaces the set that has it. */
export async function writeSet(name, text, overwrite) {
  const options = { overwrite, stringify: false, throwOnError: false };
  const answer = await reach(() => api.storeUserData(pathOf(name), `${text}\n`, options));
  if (answer.status !== 200) throw refusal(answer.status, name);
}

export async function renameSet(name, other) {
  const answer = await reach(() => api.moveUserData(pathOf(name), pathOf(other), { overwrite: false }));
  if (answer.status !== 200) throw refusal(answer.status, answer.status === 409 ? other : name);
}

export async function removeSet(name) {
  const answer = await reach(() => api.deleteUserData(pathOf(name)));
  if (answer.status !== 204 && answer.status !== 200) throw refusal(answer.status, name);
}

function refusal(status, name) {
  const said = {
    403: "ComfyUI does not allow you to change {name}.",
    404: "{name} is not there any more.",
    409: "There is already a set {name}.",
  }[status] ?? "ComfyUI could not change {name}. The disk may be full, or the user folder may be read-only.";
  return Object.assign(new Error(say(said, { name })), { status });
}
