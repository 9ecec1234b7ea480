"""Turn arrays and tensors into lists, without importing the libraries that they come from."""

from __future__ import annotations

from typing import Any


def to_plain(value: Any) -> Any:
    """Return a value with every array, tensor and NumPy scalar in it as a list, number, boolean or string.

    Args:
        value: an array, a tensor on any device, or anything else with a method ``tolist``; lists and tuples of these.

    Returns:
        Lists for arrays, lists and tuples for lists and tuples, nested as given. Other values are returned unchanged.
    """
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    return value
