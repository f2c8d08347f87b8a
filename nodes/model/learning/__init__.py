"""Models that run: sampled, recorded, measured and trained."""
