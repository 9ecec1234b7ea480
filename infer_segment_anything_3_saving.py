"""Names the files that Ikomia saves outputs to by itself, as in a folder run, so that none overwrites another."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ikomia import core, dataprocess

_LONGEST_NAME = 255  # in bytes, of file systems
_LONGEST_PATH = 100  # in characters, of folders that are part of a name
_NUMBER = 6  # characters of " (999)"


class AutoSaved:
    """A mixin for outputs: when Ikomia saves one by itself, it can go to another file, or to none.

    Ikomia gives all outputs of an image the same name, which it cuts at the first dot, and overwrites existing files.
    """

    _target: _Target | None = None

    def redirect(self, target: _Target | None) -> None:
        """Choose where Ikomia's next file goes; None if to where Ikomia says."""
        self._target = target

    def save(self, path: str) -> None:
        """Save to a file; overwrites it, unless Ikomia saves by itself.

        Raises:
            OSError: the file cannot be written.
        """
        target, self._target = self._target, None
        if target is None or not target.replaces(path):
            super().save(path)  # type: ignore[misc]  # of the output
        elif target.files:
            target.files.write(target.suffix, self.file_content())

    def file_content(self) -> bytes:
        """Return what is written to a file."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Target:
    """Where an output goes instead of to Ikomia's file.

    Attributes:
        prefix: the beginning of Ikomia's path; an output that is saved to another path goes there.
        files: the files of the run; None to write nothing.
        suffix: which of them.
    """

    prefix: str
    files: _Files | None
    suffix: str = ""

    def replaces(self, path: str) -> bool:
        """Return whether Ikomia chose the path; frames of videos have a folder of their own."""
        return path.startswith(self.prefix) and not path[len(self.prefix) :].startswith(("/", "\\"))


class _Files:
    """New files for the results of an image. They have one name, which is chosen when the first one is written.

    Args:
        prefix: path that the name is appended to.
        source: path of the image; empty if it has none.
        suffixes: of all files.
    """

    def __init__(self, prefix: str, source: str, suffixes: Sequence[str]) -> None:
        self._prefix = prefix
        self._source = source
        self._suffixes = suffixes
        self._start: str | None = None
        self._unwritten = list(suffixes)

    def write(self, suffix: str, content: bytes) -> None:
        """Write one of the files; if that fails, remove it and all that are not written yet."""
        self._start = self._start or self._reserve()
        try:
            Path(self._start + suffix).write_bytes(content)
        except OSError:
            for empty in self._unwritten:
                Path(self._start + empty).unlink(missing_ok=True)
            raise
        self._unwritten.remove(suffix)

    def _reserve(self) -> str:
        """Create all files, empty, under the first name that is free; other threads and processes may do the same."""
        beginning = len(os.fsencode(PurePath(self._prefix).name)) + max(map(len, self._suffixes))
        for name in _names(self._source, _LONGEST_NAME - beginning):
            start = self._prefix + name
            created: list[Path] = []
            try:
                for suffix in self._suffixes:
                    Path(start + suffix).touch(exist_ok=False)
                    created.append(Path(start + suffix))
            except OSError as error:
                for path in created:
                    path.unlink()
                if not isinstance(error, FileExistsError):
                    raise
            else:
                return start
        raise AssertionError("there are always more names")


def name_files(task: dataprocess.C2dImageTask, suffixes: Sequence[str]) -> None:
    """Give the files that Ikomia saves after a run names that are not in use; outputs that it does not save have none.

    Args:
        task: all of its outputs that Ikomia saves are :class:`AutoSaved` or videos.
        suffixes: the end of the file's name for each output.
    """
    saved = [
        (output, suffix)
        for output, suffix in zip(task.get_outputs(), suffixes, strict=True)
        if output.auto_save and isinstance(output, AutoSaved)
    ]
    prefix = task.output_folder  # Ikomia puts no separator between it and the name
    files = _Files(prefix, task.get_input(0).source_file_path, [suffix for _, suffix in saved])
    for output, suffix in saved:
        output.redirect(_Target(prefix, files, suffix))


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
            output.redirect(_Target(task.output_folder, None))


def _names(source: str, longest: int = _LONGEST_NAME) -> Iterator[str]:
    """Yield names for the results of an image: without its suffix, with it and more and more folders, numbered.

    Args:
        source: path of the image; empty if it has none.
        longest: the most bytes that a name may have.
    """
    path = PurePath(source)
    parts = [part for part in path.parts if part != path.anchor] or ["empty"]  # "empty" is Ikomia's name for arrays
    names = [path.stem or parts[-1]]
    if names[0].lower().endswith("_objects"):  # its mask would look like the objects of another image
        names.pop()
    names += itertools.takewhile(
        lambda name: len(name) <= _LONGEST_PATH, ("_".join(parts[-count:]) for count in range(2, len(parts) + 1))
    )
    fitting = [name for name in names if len(os.fsencode(name)) <= longest]
    yield from fitting
    shortened = os.fsencode(fitting[-1] if fitting else path.stem)[: longest - _NUMBER].decode(errors="ignore")
    yield from (f"{shortened} ({number})" for number in itertools.count(2 if fitting else 1))
