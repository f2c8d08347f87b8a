"""Values of widgets and texts of lists, and what they mean. Nothing here needs ComfyUI."""
