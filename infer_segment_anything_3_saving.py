"""Names the files that Ikomia saves outputs to by itself, as in a folder run, so that none overwrites another."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from ikomia import core, dataprocess

_LONGEST_NAME = 100  # in characters; a file's name can have 255 bytes


class AutoSaved:
    """A mixin for outputs: when Ikomia saves one by itself, it is written to the file that :meth:`redirect` names.

    Ikomia gives all outputs of an image the same name, which it cuts at the first dot, and overwrites existing files.
    """

    _redirect: tuple[str, str | None] | None = None

    def redirect(self, prefix: str, path: str | None) -> None:
        """Choose another file for what Ikomia saves after the current run.

        Args:
            prefix: Ikomia's paths start with it; an output that is saved to another path goes there.
            path: the file to write, which must not exist; None to write nothing.
        """
        self._redirect = (prefix, path)

    def save(self, path: str) -> None:
        """Save to a file; overwrites it, unless :meth:`redirect` chose it.

        Raises:
            OSError: the file that :meth:`redirect` chose exists or cannot be written.
        """
        redirect, self._redirect = self._redirect, None
        if redirect is None or not path.startswith(redirect[0]) or path[len(redirect[0]) :].startswith(("/", "\\")):
            super().save(path)  # type: ignore[misc]  # of the output; frames of videos have a folder of their own
        elif redirect[1] is not None:
            _write_new(redirect[1], self.file_content())

    def file_content(self) -> bytes:
        """Return what is written to a file."""
        raise NotImplementedError


def name_files(task: dataprocess.C2dImageTask, suffixes: Sequence[str]) -> None:
    """Choose the files of a run whose outputs Ikomia saves; an output that Ikomia does not save is left out.

    Args:
        task: all of its outputs that Ikomia saves are :class:`AutoSaved` or videos.
        suffixes: the end of the file's name for each output.
    """
    saved = [
        (output, suffix)
        for output, suffix in zip(task.get_outputs(), suffixes, strict=True)
        if output.auto_save and isinstance(output, AutoSaved)
    ]
    for name in _names(task.get_input(0).source_file_path) if saved else ():
        start = task.output_folder + name  # Ikomia puts no separator in between
        if not any(os.path.lexists(start + suffix) for _, suffix in saved):
            for output, suffix in saved:
                output.redirect(task.output_folder, start + suffix)
            return


class VideoFolders:
    """Gives each video of a folder run a folder of its own.

    Ikomia names the files of a video after the outputs, so those of the next video would overwrite them. The first
    video keeps Ikomia's folder, others get a folder in it.
    """

    def __init__(self) -> None:
        self._video: weakref.ref[core.CWorkflowTaskIO] | None = None
        self._run_folder = ""
        self._folder = ""

    def choose(self, task: dataprocess.C2dImageTask) -> None:
        """Set the task's output folder for a frame of a video; Ikomia resets it before each frame."""
        video = task.get_input(0)
        if not isinstance(video, dataprocess.CVideoIO) or not any(output.auto_save for output in task.get_outputs()):
            return
        if self._video is None or self._video() is not video or self._run_folder != task.output_folder:
            self._video, self._run_folder = weakref.ref(video), task.output_folder
            self._folder = self._run_folder
            if next(Path(self._run_folder).glob("*.json"), None):
                names = _names(video.source_file_path)
                self._folder = next(
                    folder for name in names if not os.path.lexists(folder := f"{self._run_folder}/{name}")
                )
        task.output_folder = self._folder


def save_nothing(task: dataprocess.C2dImageTask) -> None:
    """Let Ikomia save nothing after the current run."""
    for output in task.get_outputs():
        if isinstance(output, AutoSaved):
            output.redirect(task.output_folder, None)


def _names(source: str) -> Iterator[str]:
    """Yield names for the results of an image: without its suffix, with it and more and more folders, numbered."""
    path = PurePath(source)
    parts = [part for part in path.parts if part != path.anchor] or ["empty"]  # "empty" is Ikomia's name for arrays
    name = path.stem or parts[-1]
    if not name.lower().endswith("_objects"):  # its mask would look like the objects of another image
        yield name
    for count in range(2, len(parts) + 1):
        longer = "_".join(parts[-count:])
        if len(longer) > _LONGEST_NAME:
            break
        name = longer
        yield name
    yield from (f"{name} ({number})" for number in itertools.count(2))


def _write_new(path: str, content: bytes) -> None:
    """Write a file that does not exist yet, whole or not at all."""
    Path(path).touch(exist_ok=False)
    try:
        Path(path).write_bytes(content)
    except OSError:
        Path(path).unlink()
        raise
