// Undo and redo make all nodes anew: the focus goes on from the list that goes to the one that comes for it.

let last = null; // {root, key, element}: what had the focus when its list was taken out of the page
let isTaken = false; // while the focus comes from another list

/** Remember what has the focus in a list; ``key()`` is the same for a list that comes in its place. */
export function rememberFocus({ root }, key) {
  root.addEventListener("focusin", ({ target }) => {
    if (!isTaken) last = { root, key: key(), element: target.closest("[data-part]") };
  });
  root.addEventListener("focusout", () => queueMicrotask(() => {
    if (root.isConnected && last?.root === root && !root.contains(document.activeElement)) last = null;
  }));
}

/** Give a list that is now in the page, or has got its rows, the focus that went with another one. */
export function takeFocus(view, key) {
  if (!last?.element || last.key !== key() || last.root === view.root || !view.root.isConnected) return;
  const active = document.activeElement;
  if (active !== document.body && !view.root.contains(active)) return;
  isTaken = true;
  view.focus(last.element.dataset.part);
  isTaken = false;
}
