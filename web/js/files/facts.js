// Facts of a LoRA in words and numbers that people read.

import { say } from "../texts.js";

const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** The name without folder and ending; of a PEFT folder, the folder's. */
export function bareName(file) {
  const plain = file.replaceAll("\\", "/").replace(/\/adapter_model\.safetensors$/, "");
  return plain.split("/").pop().replace(/\.(safetensors|sft)$/, "");
}

export const amount = (number) => number.toLocaleString();

/** As file managers count: 1 MB is 1,000,000 bytes. */
export function sizeText(bytes) {
  let unit = 0;
  let size = bytes;
  while (size >= 999.5 && unit < UNITS.length - 1) {
    size /= 1000;
    unit++;
  }
  return `${unit && size < 9.95 ? size.toFixed(1) : Math.round(size)} ${UNITS[unit]}`;
}

export const dateText = (time) => new Date(time).toLocaleDateString();

export const baseText = ({ base, stated }) => base ?? (stated.length ? stated[0] : say("unknown"));

/** One rank, or the lowest and the highest. */
export function rankText({ ranks }) {
  if (!ranks.length) return "";
  const [first, last] = [ranks[0], ranks[ranks.length - 1]];
  return say("rank {rank}", { rank: first === last ? first : `${first}–${last}` });
}
