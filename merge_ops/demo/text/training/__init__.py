"""Scripts that made the text demo's data and LoRAs; the demo itself never runs them."""
