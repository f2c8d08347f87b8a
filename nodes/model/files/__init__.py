"""LoRA files in ComfyUI's folders, what stands beside them, and lists of them."""
