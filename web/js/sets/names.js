// Names that a set can be saved under on every system: the rules of merge_ops/saving/file_names.py, and what no part of
// a path can hold. Both sides are tested over tests/nodes/set_names.json.

import { say } from "../texts.js";

const RESERVED = /^(con|prn|aux|nul|com[1-9]|lpt[1-9])$/i;
const FORBIDDEN = /[\\/:*?"<>|]/;
const UNPRINTABLE = /(?! )[\p{C}\p{Z}]/u; // what Python calls so
const LONGEST = 200; // bytes; a file's name may have 255

/** Why no set can have the name; null where one can. */
export function problemOf(name) {
  if (!name.trim()) return say("Give the set a name.");
  if (UNPRINTABLE.test(name)) return say("The name has a character that cannot be printed.");
  if (FORBIDDEN.test(name)) return say('A name cannot have any of \\ / : * ? " < > |');
  if (name.startsWith(".")) return say("A name cannot begin with a dot.");
  if (RESERVED.test(name.split(".")[0].trimEnd())) return say("Windows reserves this name. Choose another one.");
  if (/[ .]$/.test(name)) return say("A name cannot end in a dot or a space.");
  if (new TextEncoder().encode(name).length > LONGEST) return say("The name is too long.");
  return null;
}
