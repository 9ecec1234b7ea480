"""The errors that the engine raises, and how they quote a value."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class ImageError(ValueError):
    """An image that cannot be segmented."""


class ArgumentError(ValueError):
    """A value that cannot be used.

    Attributes:
        argument: name of the argument or parameter at fault.
        value: its value; the message shortens a long one.
        reason: what is wrong, and what is expected.
    """

    _max_quoted = 80

    def __init__(self, argument: str, value: object, reason: str) -> None:
        super().__init__(f"{argument} = {quote(value, self._max_quoted)}: {reason}.")
        self.argument = argument
        self.value = value
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.argument, self.value, self.reason)


class PromptError(ArgumentError):
    """A prompt that cannot be used."""


class WeightFileError(ArgumentError):
    """A path or name for which there is no weight file."""

    _max_quoted = 1000


class WeightsError(RuntimeError):
    """The weights are not on this machine and cannot be downloaded; the message says what you can do.

    Attributes:
        reason: what went wrong, and what to do about it.
        place: path where a file that you download would be found, or None.
        argument: name of the argument or parameter that names the weights.
        source: the file to download, and from where.
    """

    def __init__(
        self,
        reason: str,
        place: Path | None = None,
        argument: str = "weights",
        source: str = "sam3.pt from https://huggingface.co/facebook/sam3",
    ) -> None:
        put_there = f"put it at {place} or " if place else ""
        super().__init__(
            f"{reason} You can also download {source} on any machine, and {put_there}set {argument} to its path."
        )
        self.reason = reason
        self.place = place
        self.argument = argument
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.place, self.argument, self.source)


class CheckpointError(ValueError):
    """A file that is not a complete and intact SAM 3 checkpoint."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is not a usable SAM 3 checkpoint: {reason}. Supported: SAM 3 and SAM 3.1 checkpoints (.pt or "
            ".safetensors) from Meta, Hugging Face transformers or fine-tuning."
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class DeviceMemoryError(RuntimeError):
    """The device ran out of memory; the message says how to use less."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(
            f"Not enough memory on {device}. Use a smaller model input size, fewer boxes or phrases at a time, or the "
            "CPU, or close other programs that use this memory."
        )
        self.device = device

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device,)


def quote(value: object, limit: int = 80) -> str:
    """Return ``value`` in quotes for a message, cut to ``limit`` characters.

    Control characters are escaped. Backslashes are not doubled, so that you can copy the path of a Windows file.
    """
    text = message_of(value) if isinstance(value, BaseException) else str(value)
    shown = repr(text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)")
    return shown.replace(r"\\", "\\")


def quote_name(name: object) -> str:
    """Return the name of a tensor, file or entry in quotes for a message; none of SAM 3's is cut."""
    return quote(name, limit=200)


def message_of(error: BaseException) -> str:
    """Return the message of an error; unlike ``str()``, it does not double the backslashes in the name of a file."""
    text = str(error)
    if isinstance(error, OSError):
        for name in (error.filename, error.filename2):
            text = text.replace(repr(name), quote(name, limit=1000)) if isinstance(name, str) else text
    return text
