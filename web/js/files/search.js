// Fuzzy search over file names with folders.

const MISS = -Infinity;

/** The files that fit every word of the query, best first, as {file, marks}: marks are places of matches. */
export function searchFiles(query, files) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const file of files) {
    const marks = new Set();
    let score = 0;
    for (const word of words) score += match(word, file, marks);
    if (score !== MISS) found.push({ file, marks, score });
  }
  const order = new Intl.Collator(undefined, { numeric: true });
  return found.sort((a, b) => b.score - a.score || order.compare(a.file, b.file));
}

/** How well a word's letters stand in a file's path, in order; words in one piece in the name come first. */
function match(word, file, marks) {
  const path = file.toLowerCase();
  const base = path.lastIndexOf("/") + 1;
  let start = path.indexOf(word, base);
  if (start < 0) start = path.indexOf(word);
  if (start >= 0) {
    for (let i = 0; i < word.length; i++) marks.add(start + i);
    const isWordStart = start === 0 || /[^a-z0-9]/.test(path[start - 1]);
    return 100 + (start >= base ? 50 : 0) + (isWordStart ? 20 : 0) - path.length / 100;
  }
  let score = 0;
  let last = -1;
  for (const letter of word) {
    const next = path.indexOf(letter, last + 1);
    if (next < 0) return MISS;
    score -= last < 0 ? 0 : next - last - 1;
    marks.add(next);
    last = next;
  }
  return score;
}
