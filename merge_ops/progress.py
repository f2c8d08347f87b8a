"""How work that takes long tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# called with what is done, what there is in all, and the name of what comes next, such as a layer
Progress = Callable[[int, int, str], None]
