"""A least-recently-used cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LRUCache(Generic[Value]):
    """Keep the most recently used values by key. Not thread-safe.

    Args:
        capacity: number of values to keep, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of ``key``; call ``compute`` if it is not cached.

        Evicts before computing, so that at most ``capacity`` values are in memory at a time. If ``compute`` raises,
        nothing is cached for ``key``.
        """
        if key not in self._values:
            while len(self._values) >= self._capacity:
                self._values.popitem(last=False)
            self._values[key] = compute()
        self._values.move_to_end(key)
        return self._values[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()
