"""Sinks that know a framework: where a merge is added to the weights of a model."""
