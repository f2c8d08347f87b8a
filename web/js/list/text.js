// The list of LoRAs as text, as nodes/values/lora_text.py reads it: one
// <lora:name:strength[:clip][:on=MODEL][:steps=TEXT][:blocks=TEXT][:prompt=TEXT]> a line, "#" switches a line off. In a prompt, < and >
// are written \< and \>, and a backslash before one of them, or at the end, is doubled. Both sides are tested
// over tests/nodes/list_cases.json.
//
// An entry is a row {name, strength, clip, on, blocks, prompt, steps, model}, where clip null means "as strength" and
// model is one of MODELS, or empty; or a line that is no row: {remark} or {unreadable}. Where the name has spaces at its ends, which may be those of a file, the row
// has it as typed besides.

import { filesCalled, filesMatching, plainName } from "../files/names.js";

export { filesCalled, filesMatching, plainName };

export const MAX_STRENGTH = 100;
export const MODELS = ["high", "low", "both"];

const LINE = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;
const TAG = "<lora:";
const INSIDE = /(?:[^<>\n\\]|\\[^\n])+/y; // up to where a tag ends, or cannot be one
const BLOCKS = /:(?:blocks|lbw)=(.*)$/;
const STEPS = /:steps=((?:(?!:(?:blocks|lbw)=).)*)/;
const ON = /:on=([^:]*)/;
const PROMPT = ":prompt=";
const NUMBER = /^\s*[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)\s*$/i;

export const isRow = (entry) => entry.name !== undefined;

export function parseList(text) {
  const entries = [];
  for (const line of text.split(LINE)) {
    const on = !line.trimStart().startsWith("#");
    const { tags, around } = splitTags(line);
    const rest = stripped(around);
    if (on && rest) entries.push({ unreadable: rest });
    if (!on && rest.replace(/^[#\s]+/, "")) {
      entries.push({ remark: tags.length ? `# ${rest.replace(/^[#\s]+/, "")}` : line.trimEnd() });
    }
    for (const tag of tags) entries.push(parseTag(tag, on) ?? { unreadable: `${TAG}${tag}>` });
  }
  return entries;
}

/** What the tags of a line hold, and the rest of it; in one pass, whatever the line holds. */
function splitTags(line) {
  const tags = [];
  let around = "";
  let end = 0;
  for (let start = line.indexOf(TAG); start >= 0; ) {
    INSIDE.lastIndex = start + TAG.length;
    const inside = INSIDE.exec(line)?.[0] ?? "";
    let behind = start + TAG.length + inside.length;
    if (inside && line[behind] === ">") {
      tags.push(inside);
      around += line.slice(end, start);
      behind += 1;
      end = behind;
    }
    start = line.indexOf(TAG, behind);
  }
  return { tags, around: around + line.slice(end) };
}

/** Without spaces and commas at both ends; a pattern would try each run of them in the middle from each place. */
function stripped(text) {
  let [start, end] = [0, text.length];
  while (start < end && " ,\t".includes(text[start])) start += 1;
  while (end > start && " ,\t".includes(text[end - 1])) end -= 1;
  return text.slice(start, end);
}

export function formatList(entries) {
  return entries.map((entry) => entry.remark ?? entry.unreadable ?? formatRow(entry)).join("\n");
}

export function formatRow(row) {
  const parts = [row.name, formatNumber(row.strength)];
  if (row.clip !== null) parts.push(formatNumber(row.clip));
  if (row.model) parts.push(`on=${row.model}`);
  if (row.steps) parts.push(`steps=${row.steps}`);
  if (row.blocks) parts.push(`blocks=${row.blocks}`);
  if (row.prompt) parts.push(`prompt=${escapePrompt(row.prompt)}`);
  return `${row.on ? "" : "# "}<lora:${parts.join(":")}>`;
}

export const formatNumber = (value) => String(Number(value.toPrecision(6)) || 0);

/** A number as typed, or null. */
export function parseNumber(text) {
  return NUMBER.test(text) ? Number(text) : null;
}

/** The files that the name of a row may mean. */
export const filesOf = (row, files) => filesCalled(row.typed ?? row.name, files);

/** The files that the name of a row stands for as a pattern; none where it is the name of a file. */
export function epochsOf(row, files) {
  return filesOf(row, files).length ? [] : filesMatching(row.typed ?? row.name, files);
}

/** The row as it can be written: spaces at the ends are not, so its file is named where it takes them to find it. */
export function settled(row, files) {
  const [found, without] = [filesOf(row, files), filesCalled(row.name, files)];
  return row.typed && found.length === 1 && without[0] !== found[0] ? withFile(row, files) : row;
}

/** The row with the name of its file, where that is clear. */
export function withFile({ typed, ...row }, files) {
  const found = filesCalled(typed ?? row.name, files);
  return found.length === 1 ? { ...row, name: plainName(found[0]) } : { ...row, ...(typed ? { typed } : {}) };
}

/**
 * Entries of any text that holds tags, such as an A1111 prompt; a name becomes that of its file where that is
 * clear.
 */
export function pastedEntries(text, files) {
  const list = parseList(text);
  const isPrompt = list.some((entry) => entry.unreadable);
  return list.filter((entry) => isRow(entry) || (entry.remark && !isPrompt)).map((entry) => {
    if (!isRow(entry)) return entry;
    return withFile(entry, files);
  });
}

// most backslashes stay as they are, since prompts write \( for a bracket
const escapePrompt = (prompt) =>
  prompt.replace(/(\\*)([<>])|\\+/g, (run, before, sign, place) => {
    if (sign) return `${before + before}\\${sign}`;
    return place + run.length === prompt.length ? run + run : run;
  });

const unescapePrompt = (written) =>
  written.replace(/(\\+)([<>]|$)|\\+/g, (whole, run, sign) =>
    run === undefined ? whole : "\\".repeat(Math.floor(run.length / 2)) + sign);

function parseTag(whole, on) {
  const cut = whole.indexOf(PROMPT);
  const stated = cut < 0 ? whole : whole.slice(0, cut);
  const model = ON.exec(stated)?.[1].trim().toLowerCase() ?? "";
  if (ON.test(stated) && !MODELS.includes(model)) return null;
  const timed = stated.replace(ON, "");
  const tag = timed.replace(STEPS, "");
  const prompt = cut < 0 ? "" : unescapePrompt(whole.slice(cut + PROMPT.length)).trim();
  const found = BLOCKS.exec(tag);
  const parts = (found ? tag.slice(0, found.index) : tag).split(":");
  const strengths = [];
  while (parts.length > 1 && strengths.length < 2 && NUMBER.test(parts.at(-1))) {
    strengths.unshift(Number(parts.pop()));
  }
  const typed = parts.join(":");
  const name = typed.trim();
  if (!name || !strengths.every((value) => Math.abs(value) <= MAX_STRENGTH)) return null;
  const blocks = found ? found[1].trim() : "";
  const steps = STEPS.exec(timed)?.[1].trim() ?? "";
  return {
    name, strength: strengths[0] ?? 1, clip: strengths[1] ?? null, on, blocks, prompt, steps, model,
    ...(typed === name ? {} : { typed }),
  };
}
