"""Studying LoRAs: facts, comparisons, spectra, advice, and pictures."""
