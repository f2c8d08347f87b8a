"""Names of layers: how each program spells them, and what they say of the model that they belong to."""
