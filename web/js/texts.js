// What the list and the parameters of a method say, in the editor's language. The English text is the key;
// the labels and tooltips of the nodes are in locales/.

const ZH = {
  // the list
  "LoRAs": "LoRA 列表",
  "No LoRAs yet. Add one, or paste <lora:name:0.8>.": "还没有 LoRA。请添加，或粘贴 <lora:名称:0.8>。",
  "+ Add LoRA": "+ 添加 LoRA",
  "One <lora:name:strength> a line; # is off": "每行一个 <lora:名称:强度>；# 表示关闭",
  "All LoRAs on": "全部 LoRA 开启",
  "Switch all on or off": "全部开启或关闭",
  "{on} of {all} on": "已开启 {on} / {all}",
  "A strength of its own for the text encoder": "为文本编码器单独设置强度",
  "A strength of its own for the text encoder; shown while a LoRA has one":
    "为文本编码器单独设置强度；只要有 LoRA 设置了就会显示",
  "Strengths block by block, such as down:0.5 mid:1": "按模块设置强度，例如 down:0.5 mid:1",
  "Edit the list as text": "以文本方式编辑列表",
  "The list as text": "文本形式的列表",
  "Blocks": "分块",
  "Text": "文本",
  // a row
  "{name} on": "开启 {name}",
  "On": "开",
  "Off": "关",
  "Strength of {name}": "{name} 的强度",
  "CLIP strength of {name}": "{name} 的 CLIP 强度",
  "Block strengths of {name}": "{name} 的分块强度",
  "blocks": "分块",
  "Drag to move {name}; or Alt+Up, Alt+Down": "拖动以移动 {name}；或按 Alt+↑、Alt+↓",
  "Remove": "移除",
  "Remove {name}": "移除 {name}",
  "There is no such file in the loras folders.": "loras 文件夹中没有这个文件。",
  "Several files are called so: {files}. Choose one.": "有多个同名文件：{files}。请选择一个。",
  "Write <lora:name:strength>": "请写成 <lora:名称:强度>",
  "Cannot be read: {text}": "无法识别：{text}",
  "drag or arrow keys to change, Shift for fine steps, click to type":
    "拖动或按方向键修改，按住 Shift 微调，点击可输入",
  "empty: as the strength": "留空：与强度相同",
  // the list of files
  "Search LoRAs": "搜索 LoRA",
  "LoRA files": "LoRA 文件",
  "There are no files in the loras folders.": "loras 文件夹中没有文件。",
  "No LoRA fits.": "没有匹配的 LoRA。",
  "{count} more: type to search": "还有 {count} 个：输入文字以搜索",
  // tooltips of parameters, which ComfyUI takes from the node's definition, without translating them
  "How much of each LoRA is kept: the largest entries, 0.7 is 70 % of them. 1 keeps all, which is linear.":
    "每个 LoRA 保留多少：保留数值最大的元素，0.7 即 70%。1 表示全部保留，等同于 linear。",
  "How much of each LoRA is kept: the largest entries, 0.5 is half of them. Lower means fewer conflicts and a softer effect; 1 keeps all.":
    "每个 LoRA 保留多少：保留数值最大的元素，0.5 即一半。越低冲突越少，效果也越柔和；1 表示全部保留。",
  "Where LoRAs pull an entry up and down, one side wins. 'total': the side with the larger sum. 'frequency': the side with more LoRAs, which often does better.":
    "当多个 LoRA 对同一元素的增减方向相反时，由一方胜出。total：总和较大的一方。frequency：LoRA 数量较多的一方，效果往往更好。",
  "How much of each LoRA is kept: entries chosen at random, 0.5 is half of them; they are scaled up to make up for it. Lower means fewer conflicts, but noise; 1 keeps all.":
    "每个 LoRA 保留多少：随机选取元素，0.5 即一半，并相应放大以作补偿。越低冲突越少，但会带来噪声；1 表示全部保留。",
  "How much of each LoRA is kept: entries chosen at random, 0.7 is 70 %; they are scaled up to make up for it. Lower means fewer conflicts, but noise; 1 keeps all.":
    "每个 LoRA 保留多少：随机选取元素，0.7 即 70%，并相应放大以作补偿。越低冲突越少，但会带来噪声；1 表示全部保留。",
  "One of the types of add_weighted_adapter in Hugging Face's PEFT; the result is what PEFT computes. Names that end in svd merge the true changes, the others the factors.":
    "Hugging Face PEFT 的 add_weighted_adapter 的一种类型；结果与 PEFT 的计算一致。名称以 svd 结尾的合并真实的权重变化，其余的合并低秩因子。",
  "How much of each LoRA is kept by the ties, dare and magnitude_prune types: 0.5 is half.":
    "ties、dare 和 magnitude_prune 类型对每个 LoRA 保留多少：0.5 即一半。",
  "How the ties types settle a sign: 'total' by the larger sum, 'frequency' by more LoRAs.":
    "ties 类型如何决定符号：total 取总和较大者，frequency 取 LoRA 数量较多者。",
  "Rank of the result of the types that end in svd; 0 takes the largest rank of the LoRAs.":
    "以 svd 结尾的类型所得结果的秩；0 取各 LoRA 中最大的秩。",
  "The types that end in svd cut off values beyond this quantile; 0 is off.":
    "以 svd 结尾的类型会截去超出此分位数的值；0 表示关闭。",
  "The bars show the rank that keeps this share of each block's energy.":
    "柱形表示保留每个模块此比例能量所需的秩。",
};
const TABLES = { zh: ZH };
let language = () => "en";

/** ``ask`` gives the editor's language when it is needed. */
export function speak(ask) {
  language = ask;
}

/** The text in the editor's language, with its {names} filled in; English where there is no other. */
export function say(text, values = {}) {
  const said = TABLES[language()]?.[text] ?? text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
