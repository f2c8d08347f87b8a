"""What merges keep of their LoRAs: ``python -m benchmarks.quality``, or ``make quality``."""
