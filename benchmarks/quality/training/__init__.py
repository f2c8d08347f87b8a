"""Scripts that made the benchmark's LoRAs; the benchmark itself never runs them."""
