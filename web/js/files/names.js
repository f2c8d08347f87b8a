// Which files a name in the list may mean, as nodes/values/lora_names.py decides it: the name as it is, then with
// the other slash, in the other Unicode form, and with other spaces at its ends. Both sides are tested over
// tests/nodes/list_cases.json.

const ENDINGS = [".safetensors", ".sft"];
const FOLDER = "/adapter_model.safetensors"; // of PEFT
const SPACES = /^[ \t\u00a0\u3000]+|[ \t\u00a0\u3000]+$/g;

export const plainName = (file) => file.replaceAll("\\", "/");

/** What people see of a file: its folder, and its name without .safetensors; of a PEFT folder, the folder's name. */
export function partsOf(file) {
  const plain = plainName(file);
  const shown = (plain.endsWith(FOLDER) ? plain.slice(0, -FOLDER.length) : plain).replace(/\.safetensors$/, "");
  const cut = shown.lastIndexOf("/") + 1;
  return { folder: shown.slice(0, cut), stem: shown.slice(cut) };
}

const composed = (name) => plainName(name).normalize("NFC");

function trimmed(name) {
  const whole = composed(name).replace(SPACES, "");
  const ending = ENDINGS.find((each) => whole.endsWith(each)) ?? "";
  const stem = ending ? whole.slice(0, -ending.length) : whole;
  return stem.split("/").map((part) => part.replace(SPACES, "")).join("/") + ending;
}

const READINGS = [(name) => name, plainName, composed, trimmed];

/** The files that a name may mean: with or without folder and ending, or a PEFT folder. */
export function filesCalled(name, files) {
  const hasFolder = plainName(name).includes("/");
  const tries = [name, name.trim()].flatMap((typed) => [0, 1, 2].map((reading) => [typed, reading]));
  tries.push([name, 3]);
  for (const [typed, reading] of tries) {
    let found = inPlace(typed, files, reading);
    if (!found.length && !hasFolder && reading) found = anywhere(typed, files, reading);
    if (found.length) return found;
  }
  if (!hasFolder) return [];
  const elsewhere = tries.map(([typed, reading]) => anywhere(typed, files, reading)).find((found) => found.length);
  return elsewhere?.length > 1 ? elsewhere : [];
}

/**
 * The files that a pattern such as epochs/run-* matches, or a folder with a slash at its end; none for another name.
 * Without a folder, files in any one folder count if there are none outside of folders.
 */
export function filesMatching(name, files) {
  const folder = composed(name).trim();
  const wanted = folder.endsWith("/") ? `${folder}*` : folder;
  if (!/[*?]/.test(wanted)) return [];
  const source = wanted.split(/(\*+|\?)/).map((part) => {
    if (part.startsWith("*")) return "[^/]*";
    return part === "?" ? "[^/]" : part.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  });
  const pattern = new RegExp(`^(?:${source.join("")})$`, "su");
  const known = files.filter((file) => ENDINGS.some((ending) => file.endsWith(ending)));
  const seen = (file) => composed(file).replace(/\/adapter_model\.safetensors$/, "");
  const fits = (text) => pattern.test(text) || pattern.test(text.replace(/\.(?:safetensors|sft)$/, ""));
  const found = known.filter((file) => fits(seen(file)));
  if (found.length || wanted.includes("/")) return found;
  const below = known.filter((file) => fits(seen(file).split("/").pop()));
  return new Set(below.map((file) => seen(file).split("/").slice(0, -1).join("/"))).size > 1 ? [] : below;
}

function inPlace(name, files, reading) {
  const { paths } = indexOf(files, reading);
  const wanted = READINGS[reading](name);
  for (const spellings of [[wanted], ENDINGS.map((ending) => wanted + ending), [wanted + FOLDER]]) {
    const found = spellings.flatMap((full) => paths.get(full) ?? []);
    if (found.length) return inOrder(found, files);
  }
  return [];
}

function anywhere(name, files, reading) {
  const { bases } = indexOf(files, reading);
  const base = READINGS[reading](name).split("/").pop();
  return inOrder([base, ...ENDINGS.map((ending) => base + ending)].flatMap((full) => bases.get(full) ?? []), files);
}

const inOrder = (found, files) => (found.length > 1 ? files.filter((file) => found.includes(file)) : found);

const indexes = new WeakMap();

/** The files by their names as one reading has them, whole and without folders; made when it is first needed. */
function indexOf(files, reading) {
  if (!indexes.has(files)) indexes.set(files, []);
  const made = indexes.get(files);
  if (!made[reading]) {
    const paths = new Map();
    const bases = new Map();
    const enter = (map, key, file) => (map.has(key) ? map.get(key).push(file) : map.set(key, [file]));
    for (const file of files) {
      const read = READINGS[reading](file);
      enter(paths, read, file);
      enter(bases, read.split("/").pop(), file);
    }
    made[reading] = { paths, bases };
  }
  return made[reading];
}
