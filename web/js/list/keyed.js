// What is drawn for an entry stays while the entry does: the focus, a text that is being typed and the place in it
// are kept, and only what changed costs time.

import { formatList, isRow } from "./text.js";

/** The entries of a new text, with those of the old text in place of their equals. */
export function keepEntries(before, after) {
  const key = (entry) => `${entry.typed ?? ""}\n${formatList([entry])}`;
  const equals = new Map();
  for (const entry of before) equals.set(key(entry), [...(equals.get(key(entry)) ?? []), entry]);
  const kept = new Set();
  const keep = (entry) => {
    kept.add(entry);
    return entry;
  };
  const found = after.map((entry) => equals.get(key(entry))?.shift()).map((entry) => entry && keep(entry));
  return after.map((entry, i) => {
    if (found[i]) return found[i];
    const old = before[i]; // at the same place with the same file, it is the same row with another strength
    if (!old || kept.has(old) || !isRow(old) || old.name !== entry.name) return entry;
    return become(keep(old), entry);
  });
}

/** Give an entry what another one has. */
export function become(entry, other) {
  if (entry === other) return entry;
  for (const name of Object.keys(entry)) delete entry[name];
  return Object.assign(entry, other);
}

/** Put these elements into a parent, in this order; one that is in its place is not moved. */
export function place(parent, elements) {
  const wanted = new Set(elements);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const element of elements) {
    if (element === at) at = at.nextElementSibling;
    else parent.insertBefore(element, at);
  }
}
