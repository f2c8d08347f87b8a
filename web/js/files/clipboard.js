// Copying text, also where the page is not a secure context and has no clipboard of its own.

import { make } from "../dom.js";

/** Put text into the clipboard; false where the browser lets no page do that. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // not a secure context, or no permission
    return copySelected(text);
  }
}

function copySelected(text) {
  const before = document.activeElement;
  const field = make("textarea", { readonly: true, style: "position: fixed; top: 0; opacity: 0" });
  field.value = text;
  // inside of what is open, so that no listener takes the focus for one that left it
  (before?.closest("[role=dialog]") ?? document.body).append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  before?.focus();
  return copied;
}
