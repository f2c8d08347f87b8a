// What is wrong with the text of block strengths, as merge_ops/blocks reads it. Which blocks a model has is not
// known here. Both sides are tested over tests/nodes/block_cases.json.

import { say } from "../texts.js";
import { MAX_STRENGTH } from "./text.js";

/** What a text may name; "in" and "out" with a number are A1111's blocks. */
export const WORDS = {
  where: ["unet", "te", "te1", "te2", "te3", "te4", "down", "mid", "up", "blocks", "refiner", "double", "single"],
  what: ["attn", "ff", "resnet", "proj", "self_attn", "cross_attn", "conv", "time", "q", "k", "v", "out", "norm"],
  stream: ["audio", "video", "audio_to_video", "video_to_audio"], // of models that make both
  numbered: ["te", "te1", "te2", "te3", "te4", "down", "up", "blocks", "refiner", "double", "single", "in", "out"],
  aliases: {
    model: "unet", dit: "unet", base: "te", m00: "mid", middle: "mid", joint: "double", layers: "blocks",
    attn1: "self_attn", attn2: "cross_attn", mlp: "ff", mod: "norm", a2v: "audio_to_video", v2a: "video_to_audio",
  },
  presets: [
    "NONE", "ALL", "ALL0.5", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "BASE", "MID", "CONTENT", "STYLE",
    ...["IN", "OUT"].flatMap((side) => Array.from({ length: 12 }, (_, i) => side + String(i).padStart(2, "0"))),
  ],
  vectors: [12, 17, 20, 26], // how many values a vector of A1111 may have
};
const ASPECTS = ["where", "stream", "what"];
const aspectOf = (word) => ASPECTS.findIndex((aspect) => WORDS[aspect].includes(word));
const isKnown = (word) => aspectOf(word) >= 0;
const plain = (word) => (Object.hasOwn(WORDS.aliases, word) ? WORDS.aliases[word] : word);
const RANGE = /^(\d{1,4})(?:-(\d{1,4}))?$/;
const WORD_AND_RANGE = /^([a-z_]+)(\d{1,4})(?:-(\d{1,4}))?$/;
const NUMBER = /^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)$/i;
const LARGE = /inf/i;

class Wrong extends Error {}

/** One sentence that says what is wrong, or null. An empty text is no block strengths, which is right. */
export function checkBlocks(text) {
  const words = text.split(":").map((part) => part.trim()).join(":").split(/[\s,;]+/).filter(Boolean);
  try {
    if (words.length > 1 && !words.some((word) => word.includes(":"))) checkVector(words);
    else if (words.length !== 1 || !WORDS.presets.includes(words[0].toUpperCase())) checkTerms(words);
  } catch (error) {
    if (error instanceof Wrong) return error.message;
    throw error;
  }
  return null;
}

function checkVector(words) {
  words.forEach((word) => checkStrength(word, word));
  if (WORDS.vectors.includes(words.length)) return;
  throw new Wrong(say("A vector has 12, 17, 20 or 26 values, not {count}.", { count: words.length }));
}

function checkTerms(words) {
  const seen = new Set();
  words.forEach((word, place) => {
    const cut = word.lastIndexOf(":");
    let [selector, number] = [word.slice(0, Math.max(0, cut)), word.slice(cut + 1)];
    if (cut < 0 && place === 0 && NUMBER.test(word)) selector = "rest";
    else if (!selector || !number) throw new Wrong(say("{word}: write block:number, as in down:0.5.", { word }));
    const parts = selector.toLowerCase() === "rest" ? "" : readSelector(selector);
    if (seen.has(parts)) throw new Wrong(say("{word} is given twice.", { word: selector }));
    seen.add(parts);
    checkStrength(number, word);
  });
}

function checkStrength(number, word) {
  if (!NUMBER.test(number)) throw new Wrong(say("{word}: {number} is not a number.", { word, number }));
  if (LARGE.test(number) || Math.abs(Number(number)) > MAX_STRENGTH) {
    throw new Wrong(say("{word}: a strength lies between -100 and 100.", { word }));
  }
}

/** The parts of a selector as one text, in the order of the aspects. */
function readSelector(selector) {
  const parts = [];
  for (const piece of selector.toLowerCase().split(".")) {
    const word = plain(piece);
    const range = RANGE.exec(piece);
    const both = WORD_AND_RANGE.exec(piece);
    if (range && parts.length && parts.at(-1).first === null) {
      parts.push(numbered(parts.pop().word, range[1], range[2], selector));
    } else if (word === "in" || isKnown(word)) parts.push({ word, first: null });
    else if (both) parts.push(numbered(plain(both[1]), both[2], both[3], selector));
    else throw unknown(piece);
  }
  const words = parts.map(({ word, first }) => (first !== null && word === "out" ? "out number" : word));
  if (parts.some(({ word, first }) => word === "in" && first === null)) {
    throw new Wrong(say("'in' needs the number of a block, as in in4."));
  }
  if (new Set(words).size < words.length) throw new Wrong(say("{word} has a word twice.", { word: selector }));
  const place = ({ word, first }) => (first === null ? aspectOf(word) : 0); // out4 is a block, out a projection
  return parts.sort((a, b) => place(a) - place(b)).map(({ word, first, last }) => `${word} ${first} ${last}`).join();
}

function numbered(word, first, last, selector) {
  if (word !== "in" && !isKnown(word)) throw unknown(word);
  if (!WORDS.numbered.includes(word)) throw new Wrong(say("{word}: these blocks have no numbers.", { word: selector }));
  const [low, high] = [Number(first), Number(last ?? first)];
  if (low > high) throw new Wrong(say("{word} counts backwards.", { word: selector }));
  return { word, first: low, last: high };
}

const unknown = (word) => new Wrong(say("There are no blocks called {word}.", { word }));
