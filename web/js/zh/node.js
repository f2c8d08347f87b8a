// Chinese: nodes around the list.

export const NODE = {
  "Stop and keep": "停止并保留",
  "End the training now and keep the best so far. Cancel keeps nothing.":
    "立即结束训练，并保留目前最好的结果。取消则什么都不保留。",
  "What the node says": "节点的说明",
  "Interrupted.": "已中断。",
};
