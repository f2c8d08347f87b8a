// Files that are dropped on a list, pasted into it or opened for it: LoRAs become rows, recipes and merges offer their
// sources, and the rows of a text are added.

import { app } from "../../../../scripts/app.js";
import { acceptFiles } from "../files/drop.js";
import { readHeader, readSample } from "../files/header.js";
import { sha256 } from "../files/sha256.js";
import { pastedEntries, isRow, formatList } from "../list/text.js";
import { say } from "../texts.js";
import { learnOf, putRows } from "./apply.js";
import { ask, tell } from "./ask.js";
import { offerSources } from "./merge_menu.js";

export const KINDS = [".safetensors", ".sft", ".json", ".yaml", ".yml", ".txt"];
const RECIPE_KEY = "lora_alloy"; // in the metadata of a merge
const LONGEST = 4 * 1024 * 1024; // of a text that may be a recipe

const endsIn = (name, endings) => endings.some((ending) => name.toLowerCase().endsWith(ending));

/** Take what is dropped on a list or pasted into it, ``{view, node}``. */
export function takeDropped(list) {
  acceptFiles(list.view.root, {
    isTaken: (name) => endsIn(name, KINDS),
    onFiles: (files) => takeFiles(list, files),
    onOthers: handOver,
  });
  list.view.root.addEventListener("paste", (event) => {
    if (event.defaultPrevented || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
    const text = event.clipboardData.getData("text/plain");
    const files = [...event.clipboardData.files].filter(({ name }) => endsIn(name, KINDS));
    if (!files.length && !isRecipe(text)) return;
    event.preventDefault();
    event.stopPropagation();
    if (files.length) takeFiles(list, files);
    else offerSources(list, { text }, { title: say("The pasted recipe") });
  });
}

/** Take files one after the other; only a file that comes alone asks what to do with it. */
export async function takeFiles(list, files) {
  const { root } = list.view;
  root.setAttribute("aria-busy", "true");
  try {
    const loras = files.filter(({ name }) => endsIn(name, [".safetensors", ".sft"]));
    const texts = files.filter((file) => !loras.includes(file));
    if (loras.length) await takeLoras(list, loras, files.length === 1);
    for (const file of texts) await takeText(list, file);
    if (!files.length) tell("warn", say("There is no LoRA in this folder."));
  } catch (error) {
    tell("error", say("The files cannot be read."), error.message);
  } finally {
    root.removeAttribute("aria-busy");
  }
}

async function takeLoras(list, files, isAlone) {
  const [rows, absent] = [[], []];
  let folder = "";
  for (const file of files) {
    const header = await readHeader(file);
    if (!header) {
      tell("error", say("{name} is not a safetensors file, or it is cut off.", file));
      continue;
    }
    const found = await find(file, header);
    folder = found.folder;
    if (found.problem) {
      tell("error", say("{name} is not a LoRA.", file), found.problem);
      continue;
    }
    const recipe = header.metadata[RECIPE_KEY];
    if (isAlone && recipe) {
      const note = found.name === null ? whereToPut([file.name], folder) : null;
      if (found.name !== null) await learnOf(list.view, [found.name]);
      return offerSources(list, { text: recipe }, { title: file.name, file: found.name, note });
    }
    if (found.name === null) absent.push(file.name);
    else rows.push(found.name);
  }
  if (rows.length) {
    await learnOf(list.view, rows);
    const last = list.view.rows.length + rows.length - 1;
    putRows(list, rows.map((name) => `<lora:${name}:1>`).join("\n"), { focus: `name:${last}` });
  }
  if (absent.length) tell("warn", say("Not in the loras folders yet"), whereToPut(absent, folder));
  return undefined;
}

/** ``{name, folder, problem}``; a file is hashed only if one of its size and with the same bytes is there. */
async function find(file, { keys }) {
  const question = { name: file.name, size: file.size, sample: await readSample(file), keys };
  const first = await ask("/lora_alloy/find", question);
  if (!first.alike || first.problem) return { ...first, name: null };
  const second = await ask("/lora_alloy/find", { ...question, sha256: await sha256(file) });
  return { ...second, name: second.found };
}

function whereToPut(names, folder) {
  const all = names.join(", ");
  return names.length === 1
    ? say("{name} is not in the loras folders. Put it into {folder} and drop it again.", { name: names[0], folder })
    : say("{count} files are not in the loras folders. Put them into {folder} and drop them again: {names}",
      { count: names.length, folder, names: all });
}

async function takeText(list, file) {
  const isRecipeFile = endsIn(file.name, [".yaml", ".yml"]);
  const text = file.size <= LONGEST ? await file.text() : "";
  const title = file.name;
  if (isRecipeFile || isRecipe(text)) return offerSources(list, { text }, { title });
  const entries = endsIn(file.name, [".txt"]) ? pastedEntries(text, list.view.files()) : [];
  if (entries.some(isRow)) return putRows(list, formatList(entries));
  if (endsIn(file.name, [".json"])) return handOver([file]);
  return tell("warn", say("There are no LoRAs in {name}.", file));
}

/** Whether a text is a recipe, of ours or of LoRAX or mergekit, or means to be one. */
export function isRecipe(text) {
  if (/^\s*\{/.test(text)) {
    try {
      const given = JSON.parse(text);
      return ["merge_method", "merge_strategy", "ids"].some((key) => key in given)
        || ("recipe" in given && "sources" in given);
    } catch (error) {
      if (error instanceof SyntaxError) return false;
      throw error;
    }
  }
  return /^merge_method\s*:/m.test(text);
}

/** What is not ours, ComfyUI opens: pictures and workflows. */
async function handOver(files) {
  for (const file of files) await app.handleFile(file, "file_drop");
}
