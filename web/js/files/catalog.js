// The files as the picker lists and searches them, made once for each list of names: in natural order, those of
// the root first and then folder by folder, each folder before what lies in it.

import { partsOf, plainName } from "./names.js";

const ORDER = new Intl.Collator(undefined, { numeric: true });
const catalogs = new WeakMap();

/**
 * An entry for each file: ``name`` as the server has it, ``file`` with plain slashes, ``folder`` and ``stem`` as
 * they are shown, ``path`` of both in lower case, the ``letters`` of that as bits, and its ``rank`` in the order.
 */
export function catalogOf(files) {
  if (!catalogs.has(files)) catalogs.set(files, makeCatalog(files));
  return catalogs.get(files);
}

/** Make it while the page has nothing else to do. */
export function prepareCatalog(files) {
  const later = window.requestIdleCallback ?? setTimeout;
  later(() => catalogOf(files));
}

function makeCatalog(files) {
  const folders = new Map();
  for (const name of files) {
    const entry = entryOf(name);
    if (folders.has(entry.folder)) folders.get(entry.folder).push(entry);
    else folders.set(entry.folder, [entry]);
  }
  const inOrder = [...folders.keys()].map((folder) => folder.split("/").slice(0, -1)).sort(byParts);
  const entries = inOrder.flatMap((parts) => folders.get(parts.map((part) => `${part}/`).join("")).sort(
    (a, b) => ORDER.compare(a.stem, b.stem) || ORDER.compare(a.file, b.file),
  ));
  entries.forEach((entry, rank) => { entry.rank = rank; });
  return entries;
}

function entryOf(name) {
  const { folder, stem } = partsOf(name.normalize("NFC"));
  const path = lowerCase(folder + stem);
  return { name, file: plainName(name), folder, stem, path, letters: lettersOf(path), rank: 0 };
}

function byParts(a, b) {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) {
    const order = ORDER.compare(a[i], b[i]) || (a[i] < b[i] ? -1 : a[i] > b[i] ? 1 : 0);
    if (order) return order;
  }
  return a.length - b.length;
}

/** In lower case with every letter in its place: a few capitals become two letters. */
export function lowerCase(text) {
  const lower = text.toLowerCase();
  if (lower.length === text.length) return lower;
  return text.replace(/./gsu, (letter) => {
    const small = letter.toLowerCase();
    return small.length === letter.length ? small : letter;
  });
}

/** One bit for each of 32 groups of letters: what is missing here need not be looked for. */
export function lettersOf(text) {
  let bits = 0;
  for (let i = 0; i < text.length; i++) bits |= 1 << (text.charCodeAt(i) & 31);
  return bits;
}
