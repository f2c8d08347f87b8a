"""What touches ComfyUI: its models, their weights and patches, its memory, and its folders of LoRA files."""
