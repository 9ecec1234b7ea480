"""Turn arrays and tensors into lists, without importing the libraries that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_plain(value: Any) -> Any:
    """Return a value with every array, tensor and NumPy scalar in it as a list, number, boolean or string.

    Args:
        value: an array, a tensor on any device, or anything else with a method ``tolist``; lists and tuples of these,
            and mappings to these.

    Returns:
        Lists for arrays; lists, tuples and dicts for lists, tuples and mappings, nested as given. Other values, and the
        keys of mappings, are returned unchanged.
    """
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value
