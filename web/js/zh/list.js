// Chinese: the list and its rows.

export const LIST = {
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
};
