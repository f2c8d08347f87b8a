// What is wrong with the text of a strength over the sampling, as nodes/values/steps.py reads it. Both sides are
// tested over tests/nodes/steps_cases.json.

import { say } from "../texts.js";
import { MAX_STRENGTH } from "./text.js";

const MAX_WORDS = 64;
const SHARE = "([0-9]+(?:\\.[0-9]*)?|\\.[0-9]+)";
const FACTOR = "([+-]?(?:[0-9]+(?:\\.[0-9]*)?|\\.[0-9]+)(?:e[+-]?[0-9]+)?)";
const SPAN = new RegExp(`^${SHARE}-${SHARE}(?::${FACTOR})?$`, "i");
const POINT = new RegExp(`^${SHARE}:${FACTOR}$`, "i");

/** One sentence that says what is wrong, or null. An empty text is a strength that stays, which is right. */
export function checkSteps(text) {
  const spaced = text.split(/[\s,;]+/).join(" ");
  const words = spaced.replace(/ ?([:-]) ?/g, "$1").split(" ").filter(Boolean);
  if (words.length > MAX_WORDS) return say("At most {count} spans or points.", { count: MAX_WORDS });
  const spans = [];
  const points = [];
  for (const word of words) {
    const [span, point] = [SPAN.exec(word), POINT.exec(word)];
    if (!span && !point) return say("{word}: write a span such as 0-0.25, or a curve such as 0:1 0.5:0.", { word });
    const shares = (span ? span.slice(1, 3) : point.slice(1, 2)).map(Number);
    if (shares.some((share) => share > 1)) return say("{word}: a share of the sampling lies between 0 and 1.", { word });
    if (Math.abs(Number((span ? span[3] : point[2]) ?? 1)) > MAX_STRENGTH) {
      return say("{word}: a strength lies between -100 and 100.", { word });
    }
    if (span && shares[0] >= shares[1]) return say("{word} ends before it begins.", { word });
    if (span) spans.push(shares);
    else points.push(shares[0]);
  }
  if (spans.length && points.length) return say("Write either spans or points, not both.");
  return spans.length ? checkSpans(spans) : checkPoints(points);
}

function checkSpans(spans) {
  spans.sort((a, b) => a[0] - b[0]);
  return spans.some((span, i) => i && span[0] < spans[i - 1][1]) ? say("Two spans overlap.") : null;
}

function checkPoints(points) {
  if (points.length === 1) return say("A curve needs two points or more, such as 0:1 1:0.");
  if (points.some((share, i) => i && share < points[i - 1])) return say("The points of a curve go from 0 to 1.");
  return points.some((share, i) => i > 1 && share === points[i - 2]) ? say("A point is given three times.") : null;
}
