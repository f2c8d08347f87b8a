"""Programs whose arithmetic differs where an adapter needs the weights of the base model."""

READERS = ("peft", "comfyui")
