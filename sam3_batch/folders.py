"""Folders of files, on this machine or on remote storage."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs


@dataclass(frozen=True)
class Folder:
    """A folder on this machine or on any storage that pyarrow or fsspec supports.

    Attributes:
        uri: local path, or URI such as ``s3://bucket/photos``.
    """

    uri: str

    @functools.cached_property
    def _location(self) -> tuple[pyarrow.fs.FileSystem, str]:
        if "://" not in self.uri:
            return pyarrow.fs.LocalFileSystem(), Path(self.uri).expanduser().resolve().as_posix()
        try:
            return pyarrow.fs.FileSystem.from_uri(self.uri)
        except pa.ArrowInvalid:  # pyarrow does not know the scheme
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(self.uri)
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), root

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """Return the file system that holds the folder."""
        return self._location[0]

    @property
    def root(self) -> str:
        """Return the path of the folder inside its file system."""
        return self._location[1]

    def __reduce__(self) -> Any:
        """Pickle the URI only: connections cannot be pickled."""
        return Folder, (self.uri,)

    def __truediv__(self, name: str) -> Folder:
        """Return a subfolder."""
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def files(self) -> list[str]:
        """Return the paths of all files in the folder and its subfolders, relative to the folder and sorted.

        Raises:
            OSError: the folder does not exist or cannot be read.
        """
        found = self.filesystem.get_file_info(pyarrow.fs.FileSelector(self.root, recursive=True))
        return sorted(info.path[len(self.root) :].lstrip("/") for info in found if info.is_file)

    def exists(self, path: str = "") -> bool:
        """Return whether the folder itself, or a file or folder inside it, exists."""
        return self.filesystem.get_file_info(f"{self.root}/{path}").type != pyarrow.fs.FileType.NotFound

    def contains(self, other: Folder) -> bool:
        """Return whether the other folder is this one or inside it."""
        same_kind = type(self.filesystem) is type(other.filesystem)
        return same_kind and f"{other.root}/".startswith(f"{self.root.rstrip('/')}/")

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: the file does not exist or cannot be read.
        """
        with self.filesystem.open_input_stream(f"{self.root}/{path}") as stream:
            return stream.read()

    def write(self, path: str, content: bytes) -> None:
        """Write a file atomically, creating the folders on its path.

        Raises:
            OSError: the file cannot be written.
        """
        with self.writing(path) as stream:
            stream.write(content)

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a stream to a file that appears, or replaces an earlier one, when the context ends without an error.

        Creates the folders on its path.

        Raises:
            OSError: the file cannot be written.
        """
        folder, _, name = f"{self.root}/{path}".rpartition("/")
        self.filesystem.create_dir(folder, recursive=True)
        unfinished = f"{folder}/_{uuid.uuid4().hex}"  # readers of Parquet datasets skip names that start with "_"
        try:
            with self.filesystem.open_output_stream(unfinished) as stream:
                yield stream
            self.filesystem.move(unfinished, f"{folder}/{name}")
        except BaseException:
            with contextlib.suppress(OSError):  # the error that led here matters more
                self.filesystem.delete_file(unfinished)
            raise
