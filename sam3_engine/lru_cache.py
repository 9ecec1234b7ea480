"""Least-recently-used caches, which may share a memory budget."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")

_Storages = Mapping[tuple[str, int], int]  # bytes by device and address


class MemoryBudget:
    """Bounds the memory of what caches keep: together, they evict the least recently used values.

    The memory of a value is that of its tensors, on whatever device. A storage that several values share counts once.
    Thread-safe. Caches are referenced weakly.

    Args:
        limit: in bytes.

    Attributes:
        lock: held while a cache or the budget changes; values are computed outside it.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.lock = threading.RLock()  # reentrant: the garbage collector may run any destructor meanwhile
        self._limit = limit
        self._caches: weakref.WeakSet[LRUCache[Any]] = weakref.WeakSet()
        self._clock = itertools.count()
        self._suspensions = 0

    @property
    def limit(self) -> float:
        """The limit in bytes. Lowering it evicts what exceeds it."""
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        with self.lock:
            self._limit = limit
            self.make_room({})

    @property
    def used(self) -> int:
        """The bytes that the caches keep."""
        with self.lock:
            return sum(_storages_in(list(self._caches)).values())

    def clear(self) -> None:
        """Clear all caches."""
        with self.lock:
            for cache in list(self._caches):
                cache.clear()

    @contextlib.contextmanager
    def keeping_nothing(self) -> Iterator[None]:
        """Clear all caches, and add nothing to them meanwhile, whichever thread computes it."""
        with self.lock:
            self._suspensions += 1
            self.clear()
        try:
            yield
        finally:
            with self.lock:
                self._suspensions -= 1

    # --- for the caches

    def register(self, cache: LRUCache[Any]) -> None:
        """Count what ``cache`` keeps, as long as it exists."""
        with self.lock:
            self._caches.add(cache)

    def now(self) -> int:
        """Return the time, which is later with each call."""
        return next(self._clock)

    def make_room(self, storages: _Storages) -> bool:
        """Evict values until a new one with these storages fits.

        Returns:
            False, with nothing evicted, if the new value is not to be kept: it alone exceeds the limit, or nothing is
            kept at the moment.
        """
        with self.lock:
            if self._suspensions or sum(storages.values()) > self._limit:
                return False
            # one at a time: a value may hold a cache of its own, which goes with it
            while self._evict_if_exceeded(storages):
                pass
            return True

    def _evict_if_exceeded(self, storages: _Storages) -> bool:
        caches = list(self._caches)
        if sum({**_storages_in(caches), **storages}.values()) <= self._limit:
            return False
        min(caches, key=lambda cache: cache.least_recent_use).evict_one()
        return True


class LRUCache(Generic[Value]):
    """Keep the most recently used values by key.

    Thread-safe, but threads that ask for the same missing value at the same time all compute it.

    Args:
        capacity: number of values to keep, at least 1.
        budget: bounds the memory of the values, together with those of other caches; by default, it is unbounded.

    Attributes:
        last_use: when a value was last asked for or added.
    """

    def __init__(self, capacity: int, budget: MemoryBudget | None = None) -> None:
        self._capacity = capacity
        self._budget = MemoryBudget() if budget is None else budget
        self._entries: dict[Hashable, _Entry] = {}
        self.last_use = self._budget.now()
        self._budget.register(self)

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of ``key``; call ``compute`` if it is not cached.

        Evicts before computing, so that at most ``capacity`` values are in memory at a time. What exceeds the budget
        is evicted after computing, when the size of the value is known; a value that alone exceeds it is not cached.
        If ``compute`` raises, nothing is cached for ``key``.
        """
        with self._budget.lock:
            self.last_use = self._budget.now()  # even if the value is missing: what holds this cache is in use
            if key in self._entries:
                entry = self._entries[key]
                self._mark_used(entry)
                return entry.value
            self._evict_to(self._capacity - 1)
        entry = _Entry(compute())
        with self._budget.lock:
            self._entries.pop(key, None)  # another thread may have computed it, too
            if self._budget.make_room(entry.storages):
                self._evict_to(self._capacity - 1)
                self._entries[key] = entry
                self._mark_used(entry)
        return entry.value

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def clear(self) -> None:
        """Remove all values."""
        with self._budget.lock:
            self._entries.clear()

    def _mark_used(self, entry: _Entry) -> None:
        entry.marked = self._budget.now()
        self.last_use = self._budget.now()  # later: a value that holds this cache outlives what is in it

    def _evict_to(self, count: int) -> None:
        while len(self._entries) > count:
            self.evict_one()

    # --- for the budget, which holds its lock

    @property
    def least_recent_use(self) -> float:
        """When the least recently used value was used; infinity if there is none."""
        return min((entry.last_use for entry in self._entries.values()), default=math.inf)

    def evict_one(self) -> None:
        """Remove the least recently used value."""
        del self._entries[min(self._entries, key=lambda key: self._entries[key].last_use)]

    def storages(self) -> Iterator[tuple[tuple[str, int], int]]:
        """Yield each storage of each value, and its bytes."""
        for entry in self._entries.values():
            yield from entry.storages.items()


class _Entry:
    """A value in a cache.

    Attributes:
        value: as computed.
        storages: of its tensors.
        marked: when the value itself was last used.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.storages: _Storages = {
            (str(storage.device), storage.data_ptr()): storage.nbytes()
            for storage in (tensor.untyped_storage() for tensor in _tensors_in(value))
        }
        self.marked = 0
        self._caches = [cache for cache in _fields_of(value) if isinstance(cache, LRUCache)]

    @property
    def last_use(self) -> int:
        """When the value, or a cache among its fields, was last used."""
        return max([self.marked, *(cache.last_use for cache in self._caches)])


def _storages_in(caches: list[LRUCache[Any]]) -> _Storages:
    return {key: size for cache in caches for key, size in cache.storages()}


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in mappings, lists, tuples and dataclasses, at any depth."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        items = list(value.values())
    else:
        items = list(value) if isinstance(value, list | tuple) else _fields_of(value)
    for item in items:
        yield from _tensors_in(item)


def _fields_of(value: Any) -> list[Any]:
    """Return the values of a dataclass's fields; none of anything else."""
    if not dataclasses.is_dataclass(value):
        return []
    return [getattr(value, field.name) for field in dataclasses.fields(value)]
