// What the list and the parameters of a method say, in the editor's language. The English text is the key;
// the labels and tooltips of the nodes are in locales/.

const ZH = {
  // the list
  "LoRAs": "LoRA 列表",
  "No LoRAs yet. Add one, or paste <lora:name:0.8>.": "还没有 LoRA。请添加，或粘贴 <lora:名称:0.8>。",
  "+ Add LoRA": "+ 添加 LoRA",
  "One <lora:name:strength> per line; # switches a line off": "每行一个 <lora:名称:强度>；行首加 # 可关闭该行",
  "All LoRAs on": "全部 LoRA 开启",
  "Switch all on or off": "全部开启或关闭",
  "{on} of {all} on": "已开启 {on} / {all}",
  "Set a separate strength for the text encoder": "为文本编码器单独设置强度",
  "Set a separate strength for the text encoder; shown while any LoRA has one":
    "为文本编码器单独设置强度；只要有 LoRA 设置了就会一直显示",
  "Set strengths block by block, such as down:0.5 mid:1": "按分块设置强度，例如 down:0.5 mid:1",
  "Edit the list as text": "以文本方式编辑列表",
  "The list as text": "文本形式的列表",
  "Say what each LoRA was trained on, for Record LoRAs: a prompt, or several with | between them":
    "为“录制 LoRA”填写每个 LoRA 的训练内容：一个提示词，或用 | 分隔的多个提示词",
  "Blocks": "分块",
  "Prompts": "提示词",
  "Text": "文本",
  // a row
  "{name} on": "开启 {name}",
  "On": "开",
  "Off": "关",
  "Strength of {name}": "{name} 的强度",
  "CLIP strength of {name}": "{name} 的 CLIP 强度",
  "Block strengths of {name}": "{name} 的分块强度",
  "blocks": "分块",
  "Prompts of {name}": "{name} 的提示词",
  "prompt": "提示词",
  "what it was trained on; several with | between them": "它训练的内容；多个提示词之间用 | 分隔",
  "Drag to move {name}, or press Alt+Up or Alt+Down": "拖动以移动 {name}，或按 Alt+↑、Alt+↓",
  "Remove": "移除",
  "Remove {name}": "移除 {name}",
  "This file is not in the loras folders.": "loras 文件夹中没有这个文件。",
  "Several files have this name: {files}. Choose one.": "有多个同名文件：{files}。请选择一个。",
  "Write <lora:name:strength>": "请写成 <lora:名称:强度>",
  "Cannot read: {text}": "无法识别：{text}",
  "Drag or press the arrow keys to change it, hold Shift for fine steps, click to type.":
    "拖动或按方向键修改，按住 Shift 微调，点击可直接输入。",
  "Leave it empty to use the model's strength.": "留空则与模型强度相同。",
  // the list of files
  "Search LoRAs": "搜索 LoRA",
  "LoRA files": "LoRA 文件",
  "The loras folders are empty.": "loras 文件夹是空的。",
  "No matching LoRAs.": "没有匹配的 LoRA。",
  "{count} more; type to search": "还有 {count} 个，输入文字可搜索",
  // Distill LoRAs
  "Stop and keep": "停止并保留",
  "End the training now and keep the best so far. Cancel keeps nothing.":
    "立即结束训练，并保留目前最好的结果。取消则什么都不保留。",
  // tooltips of parameters, which ComfyUI takes from the node's definition, without translating them
  "Fraction of each LoRA that is kept, largest entries first: 0.7 keeps 70 %. 1 keeps everything, which is linear.":
    "每个 LoRA 保留的比例，优先保留数值最大的元素：0.7 即保留 70%。1 表示全部保留，等同于 linear。",
  "Fraction of each LoRA that is kept, largest entries first: 0.5 keeps half. Lower values give fewer conflicts and a softer effect; 1 keeps everything.":
    "每个 LoRA 保留的比例，优先保留数值最大的元素：0.5 即保留一半。值越低，冲突越少，效果也越弱；1 表示全部保留。",
  "Which sign wins where LoRAs disagree: 'total' follows the larger sum, 'frequency' the larger number of LoRAs.":
    "各 LoRA 对同一元素符号不一致时以哪个符号为准：total 取总和较大的一方，frequency 取 LoRA 数量较多的一方。",
  "Fraction of each LoRA that is kept, chosen at random and scaled up to compensate: 0.5 keeps half. Lower values give fewer conflicts and more noise; 1 keeps everything.":
    "每个 LoRA 保留的比例，随机选取元素并相应放大作为补偿：0.5 即保留一半。值越低，冲突越少，噪声越多；1 表示全部保留。",
  "Fraction of each LoRA that is kept, chosen at random and scaled up to compensate: 0.7 keeps 70 %. Lower values give fewer conflicts and more noise; 1 keeps everything.":
    "每个 LoRA 保留的比例，随机选取元素并相应放大作为补偿：0.7 即保留 70%。值越低，冲突越少，噪声越多；1 表示全部保留。",
  "How close the result stays to the sum of the LoRAs. Lower values damp more where LoRAs do the same: at 1, what two LoRAs both do counts 1.2 to 2 times, the less the stronger it is. High values give the sum.":
    "结果与各 LoRA 之和有多接近。值越低，在多个 LoRA 做同一件事的地方减弱越多：为 1 时，两个 LoRA 共有的部分计为 1.2 到 2 倍，越强的部分倍数越小。值很高时得到总和。",
  "Fraction of each LoRA that is kept: 0.9 keeps 90 %, without the outliers and without the smallest entries. 1 keeps everything, which is linear.":
    "每个 LoRA 保留的比例：0.9 即保留 90%，不含离群元素和最小的元素。1 表示全部保留，等同于 linear。",
  "Fraction of each LoRA that is dropped because its entries are the largest: 0.01 drops 1 %. 0 drops only small entries.":
    "每个 LoRA 中因数值最大而舍去的元素所占的比例：0.01 即舍去 1%。0 表示只舍去较小的元素。",
  "At most this many steps towards the mean.":
    "向平均值靠近的步数上限。",
  "How much more likely large entries are kept: at 0.15, the largest of a row with 15 points more than the density, the smallest with 15 points less. 0 is DARE-TIES.":
    "较大的元素被保留的机会高出多少：为 0.15 时，一行中最大的元素比保留比例高 15 个百分点，最小的低 15 个百分点。0 即 DARE-TIES。",
  "Fraction of the entries that is kept: those in which the LoRAs differ the most. 1 keeps everything.":
    "保留的元素所占的比例：各 LoRA 差异最大的那些元素。1 表示全部保留。",
  "Fraction of each LoRA's coordinates that is kept, largest first: 0.5 keeps half. Lower values give a softer effect; 1 keeps everything.":
    "每个 LoRA 的坐标保留的比例，优先保留最大的：0.5 即保留一半。值越低，效果越弱；1 表示全部保留。",
  "Which LoRA of the list is the style. All others are subjects, and give way to it.":
    "列表中的哪个 LoRA 是风格。其他都是主体，会为它让位。",
  "How far the subjects give way to the style: 0 gives the sum, 0.5 removes a third of what a subject does on the inputs that the style reads, 100 nearly all of it.":
    "主体为风格让位的程度：0 得到总和，0.5 去掉主体在风格所读取的输入上作用的三分之一，100 几乎全部去掉。",
  "How close the result stays to the sum of the LoRAs. Lower values follow the recording more closely and trust its few inputs more; high values give the sum.":
    "结果与各 LoRA 之和有多接近。值越低，越贴近录制内容，也越相信其中不多的输入；值很高时得到总和。",
  "A combination type of PEFT's add_weighted_adapter, with the result that PEFT computes. Types ending in svd merge the full weight changes; the others work on the LoRA matrices.":
    "PEFT 的 add_weighted_adapter 的组合类型，结果与 PEFT 一致。以 svd 结尾的类型合并完整的权重变化，其余类型直接处理 LoRA 的两个矩阵。",
  "Fraction of each LoRA that the ties, dare and magnitude_prune types keep: 0.5 keeps half.":
    "ties、dare 和 magnitude_prune 类型对每个 LoRA 保留的比例：0.5 即保留一半。",
  "How the ties types choose a sign where LoRAs disagree: 'total' follows the larger sum, 'frequency' the larger number of LoRAs.":
    "符号不一致时 ties 类型以哪个符号为准：total 取总和较大的一方，frequency 取 LoRA 数量较多的一方。",
  "Rank of the result for types ending in svd. 0 uses the largest rank among the LoRAs.":
    "以 svd 结尾的类型所得结果的秩。0 表示取各 LoRA 中最大的秩。",
  "Types ending in svd clamp values beyond this quantile. 0 turns it off.":
    "以 svd 结尾的类型会截断超出此分位数的值。0 表示关闭。",
  "The bars show the rank needed to keep this share of each block's energy.":
    "柱形表示在每个模块中保留这一比例的能量所需的秩。",
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
