"""What people and programs say about a LoRA: notes beside its file, trigger words, tags of its training."""
