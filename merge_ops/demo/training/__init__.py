"""Scripts that made the demo's assets; the demo itself never runs them."""
