// Elements in one call: make("button", {class: "add", onclick: add, "aria-label": "Add"}, "text", child).

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Give an element attributes; those that it has already are not touched, null takes one away. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    const wanted = value === null || value === false ? null : value === true ? "" : String(value);
    if (element.getAttribute(name) === wanted) continue;
    if (wanted === null) element.removeAttribute(name);
    else element.setAttribute(name, wanted);
  }
}

/** An event that nothing outside hears of: ComfyUI's own keys would delete or queue something. */
export function claim(event) {
  event.preventDefault();
  event.stopPropagation();
}

const styles = new Set();

/** Load a stylesheet that lies beside a script, once. */
export function loadStyle(path, script) {
  const { href } = new URL(path, script);
  if (styles.has(href)) return;
  styles.add(href);
  document.head.append(make("link", { rel: "stylesheet", href }));
}
