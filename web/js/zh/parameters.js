// Chinese: tooltips of parameters, which ComfyUI takes from the node's definition, without translating them.

export const PARAMETERS = {
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
