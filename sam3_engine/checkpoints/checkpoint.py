"""Read checkpoints strictly, and write them.

Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..architecture import Architecture
from ..device_errors import raise_device_error
from ..errors import CheckpointError, quote, quote_name
from .foreign_files import describe_tensors
from .layout import CLICK_HEAD, Layout, Source
from .layouts import WRAPPERS, recognize_layout, wrapper_of
from .weight_files import WeightFile, open_weight_file

if TYPE_CHECKING:
    from sam3.model.sam3_image import Sam3Image

# Meta's file holds the image model and the interactive (video) model under these prefixes
_PREFIXES = {"detector.": "", "tracker.": CLICK_HEAD}

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_COMPUTED = r".*\.attn\.freqs_cis"  # rotary tables: computed when a network is built, so a file may lack them
_ROUNDING = 1e-3  # of tables that were computed on another machine, or saved in half precision


@dataclass(frozen=True)
class Checkpoint:
    """A recognized checkpoint.

    Attributes:
        file: the file, of which only names, shapes and dtypes are read.
        layout: how its tensors are called.
        names: canonical names, as the layout spells them, to the file's own.
        architecture: sizes and parts of its network.
    """

    file: WeightFile
    layout: Layout
    names: Mapping[str, str]
    architecture: Architecture

    @property
    def description(self) -> str:
        """What users call it, for example "SAM 3.1 (multiplex)"."""
        return self.layout.describe(detector=self.architecture.detector, click_head=self.architecture.click_head)


def read_checkpoint(path: Path) -> Checkpoint:
    """Recognize a checkpoint by its content. Runs no code in the file, and reads no weights.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or does not contain SAM 3.
    """
    file = open_weight_file(path)
    if not file.tensors:
        raise CheckpointError(path, "it contains no tensors")
    foreign = describe_tensors(file.tensors)
    if foreign:
        raise CheckpointError(path, foreign)
    wrapper = wrapper_of(file.tensors)
    layout = recognize_layout(name.removeprefix(wrapper) for name in file.tensors)
    if layout is None:
        raise CheckpointError(path, f"its tensors are not those of SAM 3; they include {_examples(file.tensors)}")

    _refuse_mixture(path, file.tensors, wrapper)
    names: dict[str, str] = {}
    for name in file.tensors:
        canonical = layout.canonical_name(name.removeprefix(wrapper))
        if canonical in names:
            twins = f"{quote_name(names[canonical])} and {quote_name(name)}"
            raise CheckpointError(path, f"{twins} are the same tensor")
        names[canonical] = name
    return Checkpoint(file, layout, names, _architecture(file, layout, names))


def _refuse_mixture(path: Path, names: Iterable[str], wrapper: str) -> None:
    """Raise CheckpointError if only some names have a prefix that training or compilation puts in front of all."""
    odd = [name for name in names if not name.startswith(wrapper) or name.removeprefix(wrapper).startswith(WRAPPERS)]
    if odd:
        wrapper = wrapper or next(prefix for prefix in WRAPPERS if odd[0].startswith(prefix))
        raise CheckpointError(
            path,
            f"only some of its tensors have the prefix {quote(wrapper)}: all or none should, but see {_examples(odd)}",
        )


def _architecture(file: WeightFile, layout: Layout, names: Iterable[str]) -> Architecture:
    """Return the sizes that the file states, SAM 3's own if it states none, with the parts that it has.

    Raises:
        CheckpointError: the sizes are invalid, or the file lacks a part that a network cannot do without.
    """
    sizes = Architecture()
    if file.architecture is not None:
        try:
            sizes = Architecture.from_dict(file.architecture)
        except (TypeError, ValueError) as error:
            raise CheckpointError(file.path, f"its entry 'architecture' is invalid ({error})") from error
    detector, click_head, mask_head = (
        any(re.match(mark, name) for name in names)
        for mark in (layout.detector.mark, layout.click_head.mark, layout.mask_head)
    )
    if not detector and not click_head:
        raise CheckpointError(file.path, "it contains only encoders, without a detector or a click head")
    if detector and not mask_head:
        advice = "" if layout.style else ". Fine-tune with `enable_segmentation: True`"
        raise CheckpointError(file.path, f"its detector has no mask head, so it finds boxes but no masks{advice}")
    return dataclasses.replace(sizes, detector=detector, click_head=click_head, **layout.settings)


def fit_tensors(checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors under the network's names, memory-mapped where the file has them as they are.

    Args:
        checkpoint: as :func:`read_checkpoint` returns it.
        expected: the ``state_dict()`` of the network with the checkpoint's architecture.

    Returns:
        The tensors, in float16 or bfloat16 if the file has them so, else in the network's dtypes.

    Raises:
        CheckpointError: a tensor is missing, unexpected or damaged, or does not fit.
    """
    file = checkpoint.file
    sources = _find_sources(checkpoint, expected)
    _check_leftovers(checkpoint, {name for source in sources.values() for name in source.names})
    for name, source in sources.items():  # before anything is read
        _check_tensor(checkpoint, source, expected[name])

    tensors = file.load({checkpoint.names[name] for source in sources.values() for name in source.names})
    fitted = {}
    for name, wanted in expected.items():
        if name not in sources:
            fitted[name] = wanted
            continue
        tensor = _convert(checkpoint, sources[name], tensors)
        if re.fullmatch(_COMPUTED, name):
            _check_table(checkpoint, sources[name], tensor, wanted)
        fitted[name] = tensor if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.to(wanted.dtype)
    return fitted


def _find_sources(checkpoint: Checkpoint, expected: Iterable[str]) -> dict[str, Source]:
    """Return the sources of the network's tensors, except of those that are computed."""
    sources, missing = {}, set()
    for name in expected:
        source = checkpoint.layout.source_of(name)
        absent = {file_name for file_name in source.names if file_name not in checkpoint.names} if source else {name}
        if source and not absent:
            sources[name] = source
        elif not re.fullmatch(_COMPUTED, name):
            missing |= absent
    if missing:
        raise CheckpointError(
            checkpoint.file.path,
            f"it looks like {checkpoint.description}, but tensors are missing ({len(missing)}), including "
            f"{quote_name(_own_name(checkpoint, min(missing)))}{_about_sizes(checkpoint)}",
        )
    return sources


def _own_name(checkpoint: Checkpoint, missing: str) -> str:
    """Return how a file would call a tensor that it lacks: with the prefix of its tensors of the same part."""
    prefix = max(
        (prefix for _, prefix in checkpoint.layout.prefixes if missing.startswith(prefix)), key=len, default=""
    )
    found = Counter(
        own.removesuffix(canonical.removeprefix(prefix))
        for canonical, own in checkpoint.names.items()
        if canonical.startswith(prefix)
    )
    return found.most_common(1)[0][0] + missing.removeprefix(prefix) if found else missing


def _check_leftovers(checkpoint: Checkpoint, used: set[str]) -> None:
    """Raise CheckpointError for tensors that are neither used nor known to be of no use."""
    layout, architecture = checkpoint.layout, checkpoint.architecture
    necks = [
        head.neck
        for head, there in ((layout.detector, architecture.detector), (layout.click_head, architecture.click_head))
        if not there
    ]
    unexpected = [
        checkpoint.names[name]
        for name in checkpoint.names.keys() - used
        if not layout.is_unused(name) and not any(re.fullmatch(neck, name) for neck in necks)
    ]
    if unexpected:
        raise CheckpointError(
            checkpoint.file.path,
            f"it looks like {checkpoint.description}, but it has unexpected tensors ({len(unexpected)}), including "
            f"{quote_name(min(unexpected))}{_about_sizes(checkpoint)}",
        )


def _check_tensor(checkpoint: Checkpoint, source: Source, wanted: torch.Tensor) -> None:
    """Raise CheckpointError if a tensor of the network cannot be made of its source."""
    path, tensors = checkpoint.file.path, checkpoint.file.tensors
    for name in source.names:
        own = checkpoint.names[name]
        tensor = tensors[own]
        # converting complex numbers to real ones would drop the imaginary parts without an error
        if tensor.dtype not in (_COMPLEX if wanted.is_complex() else _REAL):
            raise CheckpointError(path, f"{quote_name(own)} has dtype {tensor.dtype}, expected {wanted.dtype}")
    shape = tuple(_convert(checkpoint, source, tensors).shape)
    if shape != tuple(wanted.shape):
        own = checkpoint.names[source.names[0]]
        of_parts = f" (of {len(source.names)} joined tensors)" if len(source.names) > 1 else ""
        raise CheckpointError(
            path,
            f"{quote_name(own)} has shape {shape}{of_parts}, expected {tuple(wanted.shape)}{_about_sizes(checkpoint)}",
        )


def _about_sizes(checkpoint: Checkpoint) -> str:
    """Return what else can be wrong with a file that does not state its sizes."""
    if checkpoint.file.architecture is not None:
        return ""
    return (
        ". If its sizes (such as the input resolution or a number of layers) differ from SAM 3's, it needs an entry "
        "'architecture' (docs/weights.md)"
    )


def _check_table(checkpoint: Checkpoint, source: Source, table: torch.Tensor, computed: torch.Tensor) -> None:
    """Raise CheckpointError if a table differs by more than rounding from the one that its sizes determine."""
    if not torch.allclose(table.to(computed), computed, rtol=0, atol=_ROUNDING):
        own = checkpoint.names[source.names[0]]
        raise CheckpointError(checkpoint.file.path, f"its rotary table {quote_name(own)} is damaged")


def _convert(checkpoint: Checkpoint, source: Source, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    names = [checkpoint.names[name] for name in source.names]
    try:
        return source.convert([tensors[name] for name in names])
    except (IndexError, RuntimeError, ValueError) as error:
        raise_device_error(error)
        reason = str(error).splitlines()[0]
        quoted = ", ".join(map(quote_name, names))
        raise CheckpointError(checkpoint.file.path, f"{quoted} cannot be used: {reason}") from error


def _examples(names: Iterable[str], count: int = 3) -> str:
    return ", ".join(map(quote_name, list(names)[:count]))


def checkpoint_contents(network: Sam3Image, architecture: Architecture) -> dict[str, Any]:
    """Return what to pass to ``torch.save`` so that :func:`~..model.load_model` can load ``network`` again.

    Returns:
        The tensors under Meta's names (``model``), and the ``architecture``.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        prefix = next(prefix for prefix, ours in reversed(_PREFIXES.items()) if name.startswith(ours))
        tensors[prefix + name.removeprefix(_PREFIXES[prefix])] = tensor
    return {"model": tensors, "architecture": architecture.to_dict()}
