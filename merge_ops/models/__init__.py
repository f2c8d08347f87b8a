"""Sinks that know a framework: where a merge is added to the weights of a model."""

from .fusing import FuseReport, fuse

__all__ = ["FuseReport", "fuse"]
