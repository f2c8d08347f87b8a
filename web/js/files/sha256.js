// SHA-256 of a file, piece by piece: the browser's own needs a file in one piece, and exists only where the page
// came by HTTPS or from this machine. The algorithm and its constants are those of FIPS 180-4.

const NATIVE = 256 * 1024 * 1024; // bytes that are read in one piece
const PIECE = 4 * 1024 * 1024; // a multiple of the block
const BLOCK = 64;

export async function sha256(file) {
  if (globalThis.crypto?.subtle && file.size <= NATIVE) {
    return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer())));
  }
  return sha256InPieces(file);
}

/** As ``sha256``, without the browser's own; only one piece of the file is in memory. */
export async function sha256InPieces(file) {
  const state = Int32Array.from(primes(8), (prime) => fraction(Math.sqrt(prime)));
  const whole = file.size - (file.size % BLOCK);
  for (let start = 0; start < whole; start += PIECE) {
    const piece = file.slice(start, Math.min(start + PIECE, whole));
    digestBlocks(state, new DataView(await piece.arrayBuffer()));
  }
  const rest = new Uint8Array(await file.slice(whole).arrayBuffer());
  const last = new Uint8Array(rest.length + 9 > BLOCK ? 2 * BLOCK : BLOCK);
  last.set(rest);
  last[rest.length] = 0x80;
  const end = new DataView(last.buffer);
  end.setBigUint64(last.length - 8, BigInt(file.size) * 8n);
  digestBlocks(state, end);
  const bytes = new DataView(new ArrayBuffer(32));
  state.forEach((word, i) => bytes.setInt32(4 * i, word));
  return hex(new Uint8Array(bytes.buffer));
}

function digestBlocks(state, data) {
  const words = new Int32Array(64);
  for (let at = 0; at < data.byteLength; at += BLOCK) {
    for (let i = 0; i < 16; i++) words[i] = data.getInt32(at + 4 * i);
    for (let i = 16; i < 64; i++) {
      const early = words[i - 15];
      const late = words[i - 2];
      const small = turned(early, 7) ^ turned(early, 18) ^ (early >>> 3);
      const large = turned(late, 17) ^ turned(late, 19) ^ (late >>> 10);
      words[i] = (words[i - 16] + small + words[i - 7] + large) | 0;
    }
    let a = state[0];
    let b = state[1];
    let c = state[2];
    let d = state[3];
    let e = state[4];
    let f = state[5];
    let g = state[6];
    let h = state[7];
    for (let i = 0; i < 64; i++) {
      const chosen = (e & f) ^ (~e & g);
      const first = (h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + chosen + ROUNDS[i] + words[i]) | 0;
      const most = (a & b) ^ (a & c) ^ (b & c);
      const second = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + most) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + first) | 0;
      d = c;
      c = b;
      b = a;
      a = (first + second) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => { state[i] += word; });
  }
}

const turned = (word, by) => (word >>> by) | (word << (32 - by));

/** The first 32 bits behind the point. */
const fraction = (number) => Math.floor((number % 1) * 2 ** 32) | 0;

function primes(count) {
  const found = [];
  for (let n = 2; found.length < count; n++) if (found.every((prime) => n % prime)) found.push(n);
  return found;
}

const ROUNDS = Int32Array.from(primes(64), (prime) => fraction(Math.cbrt(prime)));

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
