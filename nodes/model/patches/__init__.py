"""How a merge gets onto MODEL and CLIP: as patches, as hooks, or by bypass."""
