"""A merge by ComfyUI's means: its device and memory, what a node says of it, and LORA_MODEL."""
