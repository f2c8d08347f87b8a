"""The LoRAs that other loaders have put on MODEL and CLIP."""
