// What a LoRA is: a card over the element that asks, with its picture, trigger words, base model and notes.

import { api } from "../../../../scripts/api.js";
import { claim, loadStyle, make } from "../dom.js";
import { openPopup } from "../popup.js";
import { say } from "../texts.js";
import { copyText } from "./clipboard.js";
import { amount, bareName, baseText, dateText, rankText, sizeText } from "./facts.js";
import { recipePart } from "./recipe_part.js";

loadStyle("./card.css", import.meta.url);

const WIDTH = 420;
const HEIGHT = 560;

/**
 * Open the card of the LoRA with this name; the returned ``close`` closes it, as Escape and a press beside it do. With
 * ``onSources``, the card of a merge has a button for its sources, which closes the card and calls it.
 */
export function openCard({ anchor, name, onClose, onSources = null }) {
  const title = bareName(name);
  const body = make("div", { class: "body", tabindex: "0", "aria-busy": "true" },
    make("p", { class: "state", role: "status" }, say("Reading {name} …", { name: title })));
  const close = make("button", {
    type: "button", class: "close", "aria-label": say("Close"), title: say("Close"), onclick: () => popup.close(),
  }, "×");
  const before = document.activeElement;
  const popup = openPopup({
    anchor, className: "lora-alloy-card", width: WIDTH, height: HEIGHT, role: "dialog",
    "aria-label": say("About {name}", { name: title }), tabindex: "-1",
    onkeydown: (event) => onKey(event, popup),
    children: [make("div", { class: "top" }, make("h2", { title: name }, title), close), body],
    onClose: () => {
      if (onClose) onClose();
      else if (before?.isConnected) before.focus();
    },
  });
  popup.element.focus();
  const loadSources = onSources && (() => {
    popup.close();
    onSources();
  });
  fill(body, name, loadSources);
  return popup;
}

function onKey(event, popup) {
  if (event.key === "Escape") {
    claim(event);
    popup.close();
  } else if (event.key !== "Tab") {
    event.stopPropagation(); // Delete, Ctrl+Enter and the like are ComfyUI's
  }
}

async function fill(body, name, loadSources) {
  let parts;
  try {
    const answer = await api.fetchApi(`/lora_alloy/info?name=${encodeURIComponent(name)}`);
    const facts = await answer.json();
    parts = answer.ok ? cardOf(facts, loadSources) : [problem(facts.error)];
  } catch { // no server, or no JSON
    parts = [problem(say("ComfyUI does not answer. Is it still running?"))];
  }
  body.replaceChildren(...parts.filter(Boolean));
  body.removeAttribute("aria-busy");
}

const problem = (text) => make("p", { class: "state problem", role: "alert" }, text);

function cardOf(facts, loadSources) {
  return [
    make("div", { class: "first" }, picture(facts), table(facts)),
    ...facts.problems.map((text) => make("p", { class: "problem" }, text)),
    words(facts),
    recipePart(facts.recipe, loadSources),
    paragraph(say("Notes"), facts.notes),
    tags(facts),
    facts.description && facts.description !== facts.notes
      ? make("details", {}, make("summary", {}, say("Description")), make("p", { class: "text" }, facts.description))
      : null,
  ];
}

function picture({ preview, video, title, name }) {
  if (!preview) {
    return make("div", { class: "picture none" }, video
      ? say("The preview is a video: {name}", { name: video }) : say("No preview image"));
  }
  const image = make("img", {
    src: preview.startsWith("data:") ? preview : api.apiURL(preview),
    alt: say("Preview of {name}", { name: title ?? bareName(name) }),
    onerror: () => frame.replaceWith(make("div", { class: "picture none" }, say("The preview image cannot be shown"))),
  });
  const frame = make("div", { class: "picture" }, image);
  return frame;
}

function table(facts) {
  const rows = [
    [say("Base model"), make("span", { class: "tag", title: facts.stated.join("\n") || null }, baseText(facts))],
    [say("Kind"), [facts.kind ?? say("unknown"), rankText(facts)].filter(Boolean).join(" · ")],
    [say("Layers"), facts.layers === null ? null : amount(facts.layers)],
    [say("Strength"), facts.strength === null ? null : say("{strength} (suggested)", { strength: facts.strength })],
    [say("Size"), `${sizeText(facts.size)}, ${dateText(facts.modified)}`],
    [say("Title"), facts.title],
    [say("Author"), facts.author],
    [say("License"), facts.license],
    [say("File"), facts.name],
  ];
  const shown = rows.filter(([, value]) => value);
  return make("dl", {}, ...shown.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
}

function words({ trigger_words: found, words_from: source }) {
  const said = make("span", { class: "said", role: "status" });
  const head = make("div", { class: "head" }, make("h3", {}, say("Trigger words")), said);
  if (!found.length) {
    return make("section", {}, head,
      make("p", { class: "dim" }, say("None are noted in the file or beside it.")));
  }
  const copy = async (text) => {
    said.textContent = await copyText(text) ? say("Copied") : say("The browser does not allow copying");
  };
  if (found.length > 1) {
    const all = () => copy(found.join(", "));
    head.append(make("button", { type: "button", class: "all", onclick: all }, say("Copy all")));
  }
  const chips = found.map((word) => make("li", {}, make("button", {
    type: "button", class: "chip", title: say("Copy"), onclick: () => copy(word),
  }, word)));
  return make("section", {}, head, make("ul", { class: "chips" }, ...chips),
    make("p", { class: "dim" }, source === "ss_tag_frequency"
      ? say("From tags that stand in nearly all training images") : say("From {source}", { source })));
}

function tags({ training_tags: found }) {
  if (!found.length) return null;
  const items = found.map(({ text, count, share }) => make("li", {},
    `${text} `, make("span", { class: "dim" }, share === null ? amount(count) : `${Math.round(share * 100)} %`)));
  return make("details", {}, make("summary", {}, say("Training tags ({count})", { count: found.length })),
    make("ul", { class: "tags" }, ...items));
}

function paragraph(title, text) {
  return text ? make("section", {}, make("h3", {}, title), make("p", { class: "text" }, text)) : null;
}
