"""What merges keep of LoRAs of a sentence encoder: the text demo's three tasks and two more."""
