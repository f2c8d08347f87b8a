"""Taking turns: threads that need one model in different states use it one after another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from ..errors import MergeError


class Turns:
    """Admits threads in order of arrival; neighbours in the queue that need the same state run together.

    No thread waits for ever, because none overtakes an earlier one that needs a different state.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._inside: set[int] = set()  # thread ids
        self._state: Hashable = None

    @contextmanager
    def turn(self, state: Hashable, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
        """Wait for a turn. The first thread in calls ``begin``, the last one out calls ``end``.

        Raises:
            MergeError: if this thread already has a turn, since it would wait for itself.
        """
        me = threading.get_ident()
        self._enter(me, state, begin)
        try:
            yield
        finally:
            with self._changed:
                self._inside.discard(me)
                if not self._inside:
                    end()
                self._changed.notify_all()

    def _enter(self, me: int, state: Hashable, begin: Callable[[], None]) -> None:
        ticket = object()
        with self._changed:
            if me in self._inside:
                raise MergeError(
                    "this thread is already inside a merged request; leave that block before entering another"
                )
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._may_enter(ticket, state))
                if not self._inside:
                    begin()
                    self._state = state
                self._inside.add(me)
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _may_enter(self, ticket: object, state: Hashable) -> bool:
        return self._queue[0] is ticket and (not self._inside or self._state == state)
