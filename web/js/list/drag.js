// Moving a row by its handle, with a mouse, a pen or a finger.

import { claim } from "../dom.js";

const EDGE = 8; // pixels from the end of the list where it scrolls

export function dragRow(view, entry, grip, down) {
  claim(down);
  grip.setPointerCapture(down.pointerId);
  const rows = [...view.list.querySelectorAll(".row:not(.unreadable)")];
  const at = view.rows.indexOf(entry);
  let to = at;
  const mark = () => rows.forEach((row, i) => {
    row.classList.toggle("dragging", i === at);
    row.classList.toggle("drop-above", i === to && to < at);
    row.classList.toggle("drop-below", i === to && to > at);
  });
  const move = (event) => {
    const box = view.list.getBoundingClientRect();
    if (event.clientY < box.top + EDGE) view.list.scrollTop -= EDGE;
    if (event.clientY > box.bottom - EDGE) view.list.scrollTop += EDGE;
    to = rows.filter((row, i) => {
      const place = row.getBoundingClientRect();
      return i !== at && event.clientY > place.top + place.height / 2;
    }).length;
    mark();
  };
  const end = (event) => {
    grip.removeEventListener("pointermove", move);
    grip.removeEventListener("pointerup", end);
    grip.removeEventListener("pointercancel", end);
    rows.forEach((row) => row.classList.remove("dragging", "drop-above", "drop-below"));
    if (event.type === "pointerup") view.move(entry, to, "name");
  };
  grip.addEventListener("pointermove", move);
  grip.addEventListener("pointerup", end);
  grip.addEventListener("pointercancel", end);
}
