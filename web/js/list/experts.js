// Which of two models a row is for, as nodes/values/sides.py decides it: as the row says, else as its name does. Both
// sides are tested over tests/nodes/experts_cases.json. What only a file's metadata says is not known here.

const EXPERT = new RegExp(
  "(?<![a-zA-Z])(?:(hi(?:gh)?|HI(?:GH)?|Hi(?:gh)?|low?|LOW?|Low?)[_\\-. ]?(?:noise|Noise|NOISE)(?![a-z])"
    + "|(high|low|HIGH|LOW|High|Low)(?![a-zA-Z]))", "g",
);
const NOISE = "noise"; // what is common to all names that say the whole word

/** ``"high"``, ``"low"`` or null for each name of a list. A bare word counts beside its counterpart only. */
export function expertsOf(names) {
  const found = names.map(expertOf);
  return found.map(({ expert, rest }) => {
    const others = found.filter((other) => other.expert && other.expert !== expert).flatMap((other) => [...other.rest]);
    return expert && (rest.has(NOISE) || others.some((word) => rest.has(word))) ? expert : null;
  });
}

function expertOf(name) {
  const [experts, rest] = [new Set(), new Set()];
  for (const text of [name, name.slice(name.lastIndexOf("/") + 1)]) {
    for (const match of text.matchAll(EXPERT)) {
      experts.add((match[1] ?? match[2])[0].toLowerCase() === "h" ? "high" : "low");
      const around = `${text.slice(0, match.index)} ${text.slice(match.index + match[0].length)}`;
      rest.add(match[1] ? NOISE : around.toLowerCase());
    }
  }
  return { expert: experts.size === 1 ? [...experts][0] : null, rest };
}
