"""The version of the project, as in pyproject.toml (which an installed node pack cannot ask)."""

__version__ = "0.2.0"
