// Search over the files of a catalog. Names that contain what was typed come first; only where these are few, names
// that merely have its letters in that order are offered too.

import { lettersOf, lowerCase } from "./catalog.js";

const ENDING = ".safetensors";
const ENOUGH = 10; // names that contain the words; with as many, similar names would only be in the way
const SIMILAR = 50; // at most
const LETTER = /[\p{L}\p{N}]/u;

/** A search that goes on from its last result while the query grows. */
export class Search {
  constructor(entries) {
    Object.assign(this, { entries, words: [], pool: entries });
  }

  /** ``holding``: the entries that contain every word, best first; ``similar``: more that might be meant. */
  find(query) {
    const words = wordsOf(query);
    const grows = this.words.every((before) => words.some((word) => word.includes(before)));
    const pool = grows ? this.pool : this.entries;
    Object.assign(this, { words, pool });
    if (!words.length) return { holding: this.entries, similar: [] };
    const letters = lettersOf(words.join(""));
    const holding = [];
    const similar = [];
    for (const entry of pool) {
      if ((entry.letters & letters) !== letters) continue;
      const score = scoreOf(entry, words);
      if (score !== null) holding.push({ entry, score });
      else {
        const gaps = gapsOf(entry.path, words);
        if (gaps !== null) similar.push({ entry, score: -gaps });
      }
    }
    this.pool = [...holding, ...similar].map(({ entry }) => entry);
    return { holding: best(holding), similar: holding.length < ENOUGH ? best(similar).slice(0, SIMILAR) : [] };
  }
}

const best = (found) => found
  .sort((a, b) => b.score - a.score || a.entry.rank - b.entry.rank)
  .map(({ entry }) => entry);

/** The words of a query, as paths have them: in lower case, with plain slashes and without .safetensors. */
export function wordsOf(query) {
  const plain = lowerCase(query.normalize("NFC")).replaceAll("\\", "/");
  return plain.split(/\s+/).map(withoutEnding).filter(Boolean);
}

/** Without .safetensors, which no path has here, or the beginning of it that was typed so far. */
function withoutEnding(word) {
  const dot = word.lastIndexOf(".");
  const isEnding = dot > 0 && dot < word.length - 1 && ENDING.startsWith(word.slice(dot));
  return isEnding ? word.slice(0, dot).replace(/\/adapter_model$/, "") : word;
}

/** Higher for words in the name itself, and for whole words; null if one of them is not there. */
function scoreOf({ path, folder }, words) {
  let score = 0;
  for (const word of words) {
    const start = placeOf(path, folder.length, word);
    if (start < 0) return null;
    const end = start + word.length;
    const isStart = start === 0 || !LETTER.test(path[start - 1]);
    const isEnd = end === path.length || !LETTER.test(path[end]);
    score += (start >= folder.length ? 50 : 0) + (isStart ? 20 : 0) + (isStart && isEnd ? 10 : 0);
    if (start === folder.length && end === path.length) score += 5; // that very name
  }
  return score;
}

function placeOf(path, base, word) {
  const start = path.indexOf(word, base);
  return start < 0 ? path.indexOf(word) : start;
}

/** How many letters lie between those of the words; null if they are not all there in order. */
function gapsOf(path, words) {
  let gaps = 0;
  for (const word of words) {
    let last = -1;
    for (let i = 0; i < word.length; i++) {
      const next = path.indexOf(word[i], last + 1);
      if (next < 0) return null;
      gaps += last < 0 ? 0 : next - last - 1;
      last = next;
    }
  }
  return gaps;
}

/** The places in folder and stem that the words of a query are found at. */
export function marksOf({ path, folder }, words) {
  const marks = new Set();
  for (const word of words) {
    const start = placeOf(path, folder.length, word);
    for (let i = 0, at = start; i < word.length; i++) {
      at = start < 0 ? path.indexOf(word[i], i ? at + 1 : 0) : start + i;
      marks.add(at);
    }
  }
  return marks;
}
