"""Names the files that Ikomia saves outputs to by itself, as in a folder run, so that none overwrites another."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from ikomia import dataprocess

_LONGEST_NAME = 255  # of a file or folder, in bytes; on Windows UTF-16 units, which are never more
_LONGEST_PATH = {"win32": 259, "darwin": 1023}.get(sys.platform, 4095)  # in characters
_LONGEST_NAME_WITH_FOLDERS = 100  # in characters
_SHORTEST_NAME = 16  # in characters; shorter ones would not tell images apart
_LAST_NUMBER = " (9999999)"
_IN_VIDEO_FOLDER = "/SemanticSegIO_9999/9999999.json"


class AutoSaved:
    """A mixin for outputs: what Ikomia saves by itself goes to new files.

    Ikomia gives all outputs of an image the same name, which it cuts at the first dot, and overwrites existing files.
    """

    auto_save: bool  # Ikomia's

    _new_files: NewFiles | None = None

    def redirect(self, new_files: NewFiles | None) -> None:
        """Choose what is written when Ikomia saves this output; None for the file that Ikomia names."""
        self._new_files = new_files

    def save(self, path: str) -> None:
        """Save to a file; overwrites it, unless Ikomia saves by itself.

        Raises:
            OSError: the file cannot be written.
        """
        new_files, self._new_files = self._new_files, None
        if new_files is None or not new_files.replace(path):
            super().save(path)  # type: ignore[misc]  # of the output
        else:
            new_files.write()

    def file_content(self) -> bytes:
        """Return what is written to a file."""
        raise NotImplementedError


class NewFiles:
    """What is written when Ikomia saves the outputs of an image: files of one name that is not in use yet.

    Args:
        prefix: the beginning of the paths that Ikomia chooses; the name is appended to it.
        source: path of the image; empty if it has none.
        outputs: the outputs, by the end of the file's name; none to write nothing.
    """

    def __init__(self, prefix: str, source: str, outputs: Mapping[str, AutoSaved]) -> None:
        self._prefix = prefix
        self._source = source
        self._unwritten = dict(outputs)

    def replace(self, path: str) -> bool:
        """Return whether Ikomia chose the path; frames of videos have a folder of their own."""
        return path.startswith(self._prefix) and not path[len(self._prefix) :].startswith(("/", "\\"))

    def write(self) -> None:
        """Write all files or, if one cannot be written, none. Calls after the first do nothing.

        All are written when Ikomia saves the first output, so that no file waits for a call that never comes.
        """
        outputs, self._unwritten = self._unwritten, {}
        if not outputs:
            return
        paths = self._reserve(list(outputs))
        try:
            for path, output in zip(paths, outputs.values(), strict=True):
                path.write_bytes(output.file_content())
        except BaseException:
            _remove(paths)
            raise

    def _reserve(self, ends: Sequence[str]) -> list[Path]:
        """Create all files, empty, under the first name that no thread or process uses."""
        names = _names(self._source, self._prefix, max(ends, key=len))
        candidates = ([Path(self._prefix + name + end) for end in ends] for name in names)
        return next(filter(_create, candidates))


def _create(paths: Sequence[Path]) -> bool:
    """Create empty files, all or none; return False if one exists."""
    created: list[Path] = []
    try:
        for path in paths:
            path.touch(exist_ok=False)
            created.append(path)
    except FileExistsError:
        _remove(created)
        return False
    except BaseException:
        _remove(created)
        raise
    return True


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # the error that led here matters more
            path.unlink()


class VideoFolders:
    """Gives each video of a folder run a folder of its own.

    Ikomia names the files of a video after the outputs, so those of the next video would overwrite them. The first
    video keeps Ikomia's folder, others get a folder in it.
    """

    def __init__(self) -> None:
        self._video = ("", "")  # Ikomia's folder and the path of the video
        self._folder = ""

    def choose(self, task: dataprocess.C2dImageTask) -> None:
        """Set the task's output folder for a frame of a video; Ikomia resets it before each frame.

        Raises:
            OSError: the folder cannot be created.
        """
        video = task.get_input(0)
        if not isinstance(video, dataprocess.CVideoIO) or not any(output.auto_save for output in task.get_outputs()):
            return
        current = (task.output_folder, video.source_file_path)
        if self._video != current or _is_over(self._folder):
            self._folder = _new_folder(*current)
            self._video = current
        task.output_folder = self._folder


def _new_folder(run_folder: str, source: str) -> str:
    """Return a folder for a video that no thread or process uses for another one: Ikomia's, or one in it."""
    names = _names(source, f"{run_folder}/", _IN_VIDEO_FOLDER)
    return next(filter(_claim, itertools.chain([run_folder], (f"{run_folder}/{name}" for name in names))))


def _claim(folder: str) -> bool:
    """Create the folder of the first mask's frames; return False if there is or was one."""
    frames = Path(folder, "SemanticSegIO_1")
    try:
        frames.mkdir(parents=True)
    except FileExistsError:
        return False
    if _is_over(folder):
        frames.rmdir()
        return False
    return True


def _is_over(folder: str) -> bool:
    """Return whether a video was saved: after the last frame, Ikomia merges the files in the folders of the frames."""
    return next(Path(folder).glob("*.json"), None) is not None


def _names(source: str, start: str, end: str) -> Iterator[str]:
    """Yield names for the results of an image: without its suffix, with it and more and more folders, numbered.

    Args:
        source: path of the image; empty if it has none.
        start: of the path that the name becomes a part of. A name that makes it too long lacks its middle.
        end: the longest end of that path.
    """
    path = PurePath(source)
    parts = [part for part in path.parts if part != path.anchor] or ["empty"]  # "empty" is Ikomia's name for arrays
    stem = path.stem or parts[-1]
    names = [] if stem.lower().endswith("_objects") else [stem]  # its mask would look like the objects of another image
    names += itertools.takewhile(
        lambda name: len(name) <= _LONGEST_NAME_WITH_FOLDERS,
        ("_".join(parts[-count:]) for count in range(2, len(parts) + 1)),
    )
    yield from (_shorten(name, start, end) for name in names)
    last = _shorten(names[-1] if names else stem, start, _LAST_NUMBER + end)
    yield from (f"{last} ({number})" for number in itertools.count(2))


def _shorten(name: str, start: str, end: str) -> str:
    """Return the name, without characters of its middle if the path would be too long."""
    shorter, kept = name, len(name)
    while not _fits(start + shorter + end) and kept > _SHORTEST_NAME:
        kept -= 1
        shorter = f"{name[: kept - kept // 2]}...{name[len(name) - kept // 2 :]}"
    return shorter


def _fits(path: str) -> bool:
    """Return whether a path is short enough for file systems."""
    absolute = Path(path).absolute()
    return len(str(absolute)) <= _LONGEST_PATH and all(
        len(os.fsencode(part)) <= _LONGEST_NAME for part in absolute.parts
    )
