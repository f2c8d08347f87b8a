// Files and folders that are dropped on an element. What the element does not take goes on to ComfyUI, which opens
// pictures and workflows.

const MOST = 1000; // files of a folder

/** ``isTaken(name)`` says which files are for ``onFiles(files)``; ``onOthers(files)`` gets what came with them. */
export function acceptFiles(root, { isTaken, onFiles, onOthers }) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  root.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    root.classList.add("dropping");
  });
  root.addEventListener("dragleave", (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("dropping");
  });
  root.addEventListener("drop", async (event) => {
    root.classList.remove("dropping");
    if (!holdsFiles(event)) return;
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    // both are gone once this event is over
    const given = items.map((item) => ({ file: item.getAsFile(), entry: item.webkitGetAsEntry?.() }));
    const isOurs = ({ file, entry }) => entry?.isDirectory || (file && isTaken(file.name));
    if (!given.some(isOurs)) return;
    event.preventDefault();
    event.stopPropagation();
    const files = [];
    const others = [];
    for (const each of given) {
      if (each.entry?.isDirectory) await collect(each.entry, isTaken, files);
      else if (each.file) (isOurs(each) ? files : others).push(each.file);
    }
    if (others.length) onOthers(others);
    onFiles(files);
  });
}

/** The files of a folder and its subfolders that are taken, in the order of their names. */
async function collect(folder, isTaken, files) {
  const reader = folder.createReader();
  const inside = [];
  for (let some; (some = await new Promise((done, fail) => reader.readEntries(done, fail))).length; ) {
    inside.push(...some);
  }
  inside.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  for (const entry of inside) {
    if (files.length >= MOST) return;
    if (entry.isDirectory) await collect(entry, isTaken, files);
    else if (isTaken(entry.name)) files.push(await new Promise((done, fail) => entry.file(done, fail)));
  }
}
