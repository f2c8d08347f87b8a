// The parameters of a merge method, which ComfyUI makes anew whenever another method is chosen: what was set
// comes back with the method. Newer ComfyUI does this by itself.

const PREFIX = "method.";

export function keepMethodValues(node) {
  const method = node.widgets?.find((widget) => widget.name === "method");
  if (!method) return;
  const kept = new Map();
  const watched = new WeakSet();

  function watch() {
    for (const widget of node.widgets.filter(({ name }) => name.startsWith(PREFIX))) {
      if (watched.has(widget)) continue;
      watched.add(widget);
      const key = `${method.value} ${widget.name}`;
      after(widget, "onRemove", () => kept.set(key, widget.value));
    }
  }

  watch();
  after(node, "onConfigure", watch);
  after(method, "callback", () => {
    for (const widget of node.widgets.filter(({ name }) => name.startsWith(PREFIX))) {
      const key = `${method.value} ${widget.name}`;
      if (kept.has(key)) widget.value = kept.get(key);
    }
    watch();
  });
}

export function after(object, name, more) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    more();
    return result;
  };
}
