"""How a layout of checkpoints is described: rules from the network's names to the file's, and unused tensors.

Importing this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

CLICK_HEAD = "inst_interactive_predictor.model."  # in front of the click head's tensors in a network

Conversion = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def only(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the one tensor, as it is: the conversion of most rules."""
    (tensor,) = tensors
    return tensor


@dataclass(frozen=True)
class Source:
    """Where a tensor of the network comes from.

    Attributes:
        names: of the tensors in the file.
        convert: makes the network's tensor of them. Works on the meta device, too.
    """

    names: tuple[str, ...]
    convert: Conversion


@dataclass(frozen=True)
class Rule:
    """Names one or several tensors of the network.

    Attributes:
        pattern: regular expression for the network's whole name.
        names: templates of the names in the file, with the groups of ``pattern``.
        convert: see :class:`Source`.
    """

    pattern: str
    names: tuple[str, ...]
    convert: Conversion = only


@dataclass(frozen=True)
class Head:
    """A head of the network, which a file may lack.

    Attributes:
        mark: regular expression for the beginning of a canonical name of this head.
        neck: regular expression for the whole canonical names of its feature pyramid, unused without the head.
    """

    mark: str
    neck: str


@dataclass(frozen=True)
class Layout:
    """How the tensors of a SAM 3 network are called in a file.

    Attributes:
        version: SAM 3 or SAM 3.1.
        style: the names it uses, if they are not Meta's; for descriptions.
        mark: regular expression for the beginning of a name that only this layout has, or one further down the list.
        prefixes: variants of the beginnings of names, and the ones in canonical names, which all patterns below use.
        detector, click_head: the heads that a file may lack.
        mask_head: regular expression for the beginning of a name of the detector's mask head.
        rules: from the network's names to the file's; the first that matches applies.
        unused: regular expressions for whole names of tensors that segmenting images does not use.
        settings: what differs from SAM 3 in :class:`~..architecture.Architecture`.
    """

    version: str
    mark: str
    prefixes: tuple[tuple[str, str], ...]
    detector: Head
    click_head: Head
    mask_head: str
    rules: tuple[Rule, ...]
    unused: tuple[str, ...]
    style: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, *, detector: bool, click_head: bool) -> str:
        """Return what users call a file of this layout with these heads."""
        if not click_head:
            return f"SAM 3 detector without click head{self.style}"
        if not detector:
            return f"{self.version} click head without detector{self.style}"
        return self.version + self.style

    def source_of(self, name: str) -> Source | None:
        """Return where the network's tensor ``name`` comes from; None if no file of this layout contains it."""
        for rule in self.rules:
            match = re.fullmatch(rule.pattern, name)
            if match:
                return Source(tuple(match.expand(template) for template in rule.names), rule.convert)
        return None

    def canonical_name(self, name: str) -> str:
        """Return a name of the file as ``rules`` and ``unused`` spell it."""
        for variant, prefix in self.prefixes:
            if name.startswith(variant):
                return prefix + name.removeprefix(variant)
        return name

    def is_unused(self, name: str) -> bool:
        """Return whether segmenting images does not use the tensor with this canonical name."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)
