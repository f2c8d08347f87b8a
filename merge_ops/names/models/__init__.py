"""One file per model, or per few models of one make, with its row."""
