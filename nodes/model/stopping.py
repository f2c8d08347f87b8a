"""Stopping a training and keeping what it has learned: by the button of its node, or by a request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_running: dict[str, threading.Event] = {}  # by the id of the node; ComfyUI runs nodes in another thread


@contextmanager
def stoppable(node_id: str | None) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the training of this node was asked to stop."""
    asked = threading.Event()
    name = str(node_id)
    _running[name] = asked
    try:
        yield asked.is_set
    finally:
        if _running.get(name) is asked:
            del _running[name]


def stop(node_id: str | None = None) -> int:
    """Ask the training of a node to stop, or all; return how many there were.

    A node inside of a subgraph may be named by its own number alone.
    """
    asked = [
        event
        for name, event in list(_running.items())
        if node_id is None or name == node_id or name.endswith(f":{node_id}")
    ]
    for event in asked:
        event.set()
    return len(asked)


def list_running() -> list[str]:
    """Return the ids of the nodes that train now."""
    return list(_running)
