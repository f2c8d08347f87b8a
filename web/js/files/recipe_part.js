// The recipe of a merged LoRA, as its card shows it: the method, and what was merged at which strength.

import { make } from "../dom.js";
import { say } from "../texts.js";
import { bareName } from "./facts.js";

/** A section with the recipe, and a button that calls ``loadSources``; null for a file that is no merge. */
export function recipePart(recipe, loadSources = null) {
  if (!recipe) return null;
  const given = Object.entries(recipe.params).map(([name, value]) => `${name} ${value}`);
  const made = recipe.learned ? say("distilled") : recipe.extracted ? say("extracted") : null;
  const method = made ?? recipe.method ?? `peft, ${recipe.combination_type}`;
  const scale = recipe.scale === 1 ? [] : [say("strength {value}", { value: recipe.scale })];
  const sources = recipe.sources.map((source) => make("li", {},
    make("span", {}, bareName(source.name)), make("span", { class: "number" }, strengths(source))));
  const load = loadSources && make("button", { type: "button", class: "all", onclick: loadSources }, say("Load its sources…"));
  const title = make("h3", {}, say("Merge of {count} LoRAs", { count: sources.length }));
  return make("section", {}, make("div", { class: "head" }, title, ...(load ? [load] : [])),
    make("p", { class: "dim" }, [method, ...given, ...scale].join(" · ")),
    make("ul", { class: "sources" }, ...sources));
}

function strengths({ weight, text_weight: clip, blocks }) {
  const shown = [weight, clip].filter((value) => value !== null && value !== undefined).map(rounded).join(" / ");
  return blocks ? `${shown} (${blocks})` : shown;
}

const rounded = (value) => String(Math.round(value * 1000) / 1000);
