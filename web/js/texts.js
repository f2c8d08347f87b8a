// What the scripts say, in the editor's language. The English text is the key; the other languages have a folder
// each. The labels and tooltips of the nodes are in locales/.

import { BLOCK_SLIDERS } from "./zh/block_sliders.js";
import { CARD } from "./zh/card.js";
import { FILES } from "./zh/files.js";
import { LIST } from "./zh/list.js";
import { METHODS } from "./zh/methods.js";
import { NODE } from "./zh/node.js";
import { PARAMETERS } from "./zh/parameters.js";
import { SETS } from "./zh/sets.js";

const TABLES = {
  zh: { ...LIST, ...BLOCK_SLIDERS, ...FILES, ...CARD, ...SETS, ...METHODS, ...NODE, ...PARAMETERS },
};
let language = () => "en";

/** ``ask`` gives the editor's language when it is needed. */
export function speak(ask) {
  language = ask;
}

/** The text in the editor's language, with its {names} filled in; English where there is no other. */
export function say(text, values = {}) {
  const said = TABLES[language()]?.[text] ?? text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
