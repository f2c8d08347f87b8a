"""What LoRAs hold and how they relate: facts, comparisons, spectra, advice, and pictures of them."""
