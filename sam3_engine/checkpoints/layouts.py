"""The layouts of checkpoints that people have, and how to tell them apart by the names of their tensors.

Importing this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .layout import Layout
from .meta_layouts import SAM3, SAM3_1
from .transformers_layouts import TRANSFORMERS, TRANSFORMERS_CLICK_HEAD

LAYOUTS = (SAM3_1, TRANSFORMERS_CLICK_HEAD, TRANSFORMERS, SAM3)

# training and compilation put these in front of all names
WRAPPERS = ("module.", "_orig_mod.", "model.", "_forward_module.", "ema_model.", "net.", "sam3.")


def wrapper_of(names: Iterable[str]) -> str:
    """Return what training or compilation put in front of most names; empty if nothing."""
    names = list(names)
    for wrapper in WRAPPERS:
        wrapped = [name.removeprefix(wrapper) for name in names if name.startswith(wrapper)]
        if 2 * len(wrapped) > len(names):
            return wrapper + wrapper_of(wrapped)
    return ""


def recognize_layout(names: Iterable[str]) -> Layout | None:
    """Return the layout that a file with these names has, without what :func:`wrapper_of` returns; None if unknown."""
    names = list(names)
    return next((layout for layout in LAYOUTS if any(re.match(layout.mark, name) for name in names)), None)
