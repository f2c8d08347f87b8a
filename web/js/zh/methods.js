// Chinese: the list of methods, and what a sweep can vary.

export const METHODS = {
  "Choose a method": "选择合并方法",
  "What each method does, and what it is recommended for.": "每种方法的作用，以及推荐在什么情况下使用。",
  "For a merge to keep, and for three LoRAs or more: record the LoRAs and distill them.":
    "要长期使用的合并，以及三个或更多 LoRA：请录制这些 LoRA 再蒸馏。",
  "recommended {purpose}": "推荐：{purpose}",
  "for a quick look": "快速看看效果",
  "for LoRAs of one subject": "同一主体的多个 LoRA",
  "needs a recording": "需要录制",
  "random: set the seed": "随机：请设置种子",
  "Type to filter": "输入以筛选",
  "Nothing fits.": "没有符合的项。",
  "What can vary": "可变化的参数",
  "Parameters of the method, settings of the merge, and strengths of each LoRA.":
    "方法的参数、合并的设置，以及每个 LoRA 的强度。",
  "Choose what to vary, then write its values. Connect a merge to see its method and LoRAs.":
    "选择要变化的参数，再填写它的值。连接合并节点后，可看到它的方法和 LoRA。",
  "The merge": "合并",
  "strength of the whole merge": "整个合并的强度",
  "the method itself": "方法本身",
  "rank of the result; 0 keeps it exact": "结果的秩；0 表示保持精确",
  "of the methods that drop entries at random": "用于随机舍去元素的方法",
  "Parameters of {method}": "{method} 的参数",
  "its strength": "它的强度",
  "its strength for the text encoder": "它对文本编码器的强度",
  "its strengths block by block, such as down:0..1 step 0.5": "它的分块强度，例如 down:0..1 step 0.5",
  "Add the LoRAs, each multiplied by its weight: the same as loading them one after the other.":
    "各 LoRA 乘以强度后相加，与逐个加载相同。",
  "Average the LoRAs, each multiplied by its weight.": "各 LoRA 乘以强度后求平均。",
  "Add the LoRAs, and damp the sum where several do the same, so that it is not counted twice.":
    "将 LoRA 相加，在多个 LoRA 做同一件事的地方减弱总和，以免重复计算。",
  "Keep the largest entries of each LoRA, drop the rest, and add what is left.":
    "保留每个 LoRA 中数值最大的元素，舍去其余，再相加。",
  "Keep the largest entries of each LoRA, elect a sign for each entry, and average the LoRAs that have it.":
    "保留每个 LoRA 中数值最大的元素，对每个元素表决符号，再对符号一致的 LoRA 求平均。",
  "Drop random entries of each LoRA, divide the rest by the density, and add the LoRAs.":
    "随机舍去每个 LoRA 的部分元素，其余除以保留比例，再相加。",
  "Drop random entries of each LoRA, rescale the rest, then elect signs and average as TIES does.":
    "随机舍去每个 LoRA 的部分元素并放大其余，再像 TIES 一样表决符号并求平均。",
  "Drop the largest and the smallest entries of each LoRA, and add what is left.":
    "舍去每个 LoRA 中最大和最小的元素，将其余相加。",
  "Take the mean direction of the LoRAs on the sphere, at the mean of their sizes.":
    "取各 LoRA 在球面上的平均方向，大小取其平均。",
  "Interpolate between the LoRAs along the sphere, by the share that each has in the weights.":
    "按各自在强度中所占的份额，沿球面在各 LoRA 之间插值。",
  "Drop random entries, small ones more often, rescale the rest, elect signs and average as TIES does.":
    "随机舍去元素，较小的更常被舍去，放大其余，再像 TIES 一样表决符号并求平均。",
  "Keep the entries in which the LoRAs differ, and average those with the elected sign by energy.":
    "保留各 LoRA 差异大的元素，并对符号当选的元素按能量求平均。",
  "Write the LoRAs in one basis of singular vectors that they share, and merge the coordinates by TIES.":
    "将各 LoRA 写在共同的奇异向量基底上，用 TIES 合并坐标。",
  "Turn the singular vectors of all LoRAs into the nearest ones that are orthogonal, then add.":
    "将各 LoRA 的奇异向量变为最接近的相互正交的向量，再相加。",
  "Add a style and subjects, with the subjects damped on the inputs that the style reads.":
    "将风格与主体相加，主体在风格读取的输入上被减弱。",
  "Let each LoRA act on the inputs recorded with it as it does alone; needs a recording.":
    "让每个 LoRA 对录制到的输入像单独使用时那样起作用；需要录制。",
  "the combination types of the PEFT library, under PEFT's own names.": "PEFT 库的组合类型，沿用 PEFT 的名称。",
};
