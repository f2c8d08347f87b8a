"""Where each layer of a LoRA goes in a MODEL and a CLIP, and how their weights are stored."""
