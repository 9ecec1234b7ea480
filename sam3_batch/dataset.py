"""The Parquet dataset in an output folder: which images it holds, and how rows are added.

The files of the dataset are in the subfolder ``instances``. ``run.json`` next to it contains the parameters of the run.
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from sam3_engine.errors import quote

from .folders import Folder
from .schemas import DATASET_SCHEMA

_ROWS_PER_FILE = 10_000
_SECONDS_PER_FILE = 60.0  # a killed run loses at most this much work


def dataset_folder(output: Folder) -> Folder:
    """Return the folder of the Parquet files."""
    return output / "instances"


def open_dataset(output: Folder) -> pyarrow.dataset.Dataset:
    """Open the dataset in an output folder.

    Raises:
        OSError: there is no dataset.
    """
    folder = dataset_folder(output)
    return pyarrow.dataset.dataset(folder.root, DATASET_SCHEMA, format="parquet", filesystem=folder.filesystem)


def recorded_paths(output: Folder) -> set[str]:
    """Return the paths of all images that have a row; empty if there is no dataset yet."""
    if not dataset_folder(output).exists():
        return set()
    return set(open_dataset(output).to_table(columns=["path"])["path"].to_pylist())


def check_same_run(output: Folder, parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check that an output folder belongs to a run with the same parameters; claim it if it belongs to none.

    Args:
        output: folder of the dataset.
        parameters: of this run.
        defaults: values of parameters that an earlier version did not have yet.

    Raises:
        ValueError: the folder holds the results of a run with other parameters.
    """
    if not output.exists("run.json"):
        output.write("run.json", json.dumps(parameters, indent=2).encode())
        return
    earlier = {**defaults, **json.loads(output.read("run.json"))}
    different = [
        f"{name} = {quote(earlier.get(name), limit=1000)}"
        for name in parameters
        if earlier.get(name) != parameters[name]
    ]
    if different:
        raise ValueError(
            f"{output.uri} holds the results of another run, with {', '.join(different)}: choose another output folder"
        )


class DatasetWriter:
    """Adds rows to the dataset in an output folder.

    Rows are collected and written in files that appear complete or not at all. One process at a time may write to a
    dataset.
    """

    def __init__(self, output: Folder) -> None:
        """Prepare to write; files appear with the first rows."""
        self._folder = dataset_folder(output)
        self._pending: list[pa.Table] = []
        self._last_write = time.monotonic()

    def add(self, rows: pa.Table) -> None:
        """Add rows, and write the pending ones if they are many or the last file is a minute old.

        Args:
            rows: with the columns of ``DATASET_SCHEMA``.

        Raises:
            OSError: the file cannot be written.
        """
        self._pending.append(rows)
        due = time.monotonic() - self._last_write > _SECONDS_PER_FILE
        if due or sum(map(len, self._pending)) >= _ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows to a file.

        Raises:
            OSError: the file cannot be written.
        """
        if self._pending:
            file = io.BytesIO()
            pyarrow.parquet.write_table(pa.concat_tables(self._pending), file, compression="zstd")
            self._folder.write(f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex}.parquet", file.getvalue())
        self._pending, self._last_write = [], time.monotonic()
