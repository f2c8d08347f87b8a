// Chinese: the list of files.

export const FILES = {
  "Search LoRAs": "搜索 LoRA",
  "LoRA files": "LoRA 文件",
  "The loras folders are empty.": "loras 文件夹是空的。",
  "No matching LoRAs.": "没有匹配的 LoRA。",
  "{count} LoRAs": "{count} 个 LoRA",
  "Similar names": "相近的名称",
  "About this LoRA (F1)": "关于此 LoRA（F1）",
  "Base model": "基础模型",
  "All": "全部",
  "Unknown": "未知",
  "For {base}; the connected model is {model}.": "用于 {base}；连接的模型是 {model}。",
};
