// The names of the LoRA files. They come with the definition of one node, for every widget of the page.

import { forgetBases } from "./bases.js";
import { prepareCatalog } from "./catalog.js";

const known = { files: [], heard: new Set() };

export const knownFiles = () => known.files;

/** ``listener`` is called when there are other files, until the function that is returned is called. */
export function whenFilesChange(listener) {
  known.heard.add(listener);
  return () => known.heard.delete(listener);
}

/** Take the files from the definitions of nodes, when the page is opened or refreshed. */
export function takeFiles(definitions) {
  const options = definitions?.LoraAlloyLoader?.input?.required?.loras?.[1]?.lora_options;
  if (!options) return;
  known.files = options;
  forgetBases();
  prepareCatalog(options);
  for (const listener of known.heard) listener();
}
