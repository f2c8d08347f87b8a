// Which base model each file is for, as the server guesses it from the files' headers. What was asked once is kept
// until the list of files is refreshed.

import { api } from "../../../../scripts/api.js";

const PATH = "/lora_alloy/bases";
const CHUNK = 500; // names that the server takes at once

let known = new Map(); // name -> label, or null where nobody can say
let isRefused = false;

/** The label of a file's base model: null if it is not known, undefined if it was not asked yet. */
export const baseOf = (name) => known.get(name);

/** The files may be others now. */
export function forgetBases() {
  known = new Map();
  isRefused = false;
}

/**
 * Ask for all names, first for those that ``urgent`` gives at the time. It ends early when ``isWanted`` says no;
 * ``onRead`` is called after each answer.
 */
export async function readBases(names, { urgent, isWanted, onRead }) {
  const isOpen = (name) => !known.has(name);
  for (let at = 0; !isRefused && isWanted();) {
    let chunk = urgent().filter(isOpen).slice(0, CHUNK);
    while (!chunk.length && at < names.length) {
      chunk = names.slice(at, at + CHUNK).filter(isOpen);
      at += CHUNK;
    }
    if (!chunk.length) return;
    const asked = known;
    const bases = await ask(chunk);
    if (asked !== known) continue;
    isRefused = bases === null;
    for (const name of bases ? chunk : []) known.set(name, bases[name] ?? null);
    if (isWanted()) onRead();
  }
}

async function ask(names) {
  const answer = await api.fetchApi(PATH, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ names }),
  }).catch(() => null);
  return answer?.ok ? (await answer.json()).bases : null;
}
