"""What touches ComfyUI's models and files: names of weights, patches, memory, and the merge itself."""
