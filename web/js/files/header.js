// The header of a safetensors file that the browser holds, such as one that was dropped.

const LENGTH = 8;
const LONGEST = 100 * 1024 * 1024; // the limit of the format itself

/** ``{keys, metadata}`` of a file: the names of its tensors; null if it is no safetensors file. */
export async function readHeader(file) {
  const start = new DataView(await file.slice(0, LENGTH).arrayBuffer());
  if (start.byteLength < LENGTH) return null;
  const length = Number(start.getBigUint64(0, true));
  if (length > LONGEST || length + LENGTH > file.size) return null;
  try {
    const { __metadata__: metadata = {}, ...tensors } = JSON.parse(
      await file.slice(LENGTH, LENGTH + length).text());
    return { keys: Object.keys(tensors), metadata };
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Up to 4,096 bytes from the middle of a file, in base64, as nodes/model/files/contents.py takes them. */
export async function readSample(file) {
  const middle = Math.floor(file.size / 2);
  const bytes = new Uint8Array(await file.slice(middle, middle + 4096).arrayBuffer());
  return btoa(String.fromCharCode(...bytes));
}
