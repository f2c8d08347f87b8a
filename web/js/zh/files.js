// Chinese: the list of files.

export const FILES = {
  "Search LoRAs": "搜索 LoRA",
  "LoRA files": "LoRA 文件",
  "The loras folders are empty.": "loras 文件夹是空的。",
  "No matching LoRAs.": "没有匹配的 LoRA。",
  "{count} more; type to search": "还有 {count} 个，输入文字可搜索",
};
