"""What a merge node does: for one model, for two, and over the sampling."""
