"""Verify the checksums of a zip archive in parallel, and without keeping its data in memory."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PIECE_BYTES = 2**20  # fits into a core's cache
_MAX_THREADS = 8
_LOCAL_HEADER = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class StoredEntry:
    """An uncompressed entry of a zip archive.

    Attributes:
        name: in the archive.
        offset: of its first byte in the file.
        size: in bytes.
        checksum: the CRC-32 that its bytes should have; None if it was not computed.
    """

    name: str
    offset: int
    size: int
    checksum: int | None


def stored_entry(file: IO[bytes], entry: zipfile.ZipInfo) -> StoredEntry:
    """Find the bytes of an entry.

    Raises:
        zipfile.BadZipFile: the entry is damaged.
    """
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER):
        raise zipfile.BadZipFile("an entry is damaged")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")  # of name and extra
    offset = entry.header_offset + _LOCAL_HEADER_BYTES + lengths
    return StoredEntry(entry.filename, offset, entry.file_size, entry.CRC)


def find_damaged(path: Path, entries: Collection[StoredEntry]) -> StoredEntry | None:
    """Return an entry whose checksum is wrong, or None.

    Raises:
        OSError: the file cannot be read.
    """
    known = [entry for entry in entries if entry.checksum is not None]
    pending = iter(sorted(known, key=lambda entry: entry.offset))  # in the file's order, for disks that seek slowly
    damaged: list[StoredEntry] = []

    def check_entries() -> None:
        piece = memoryview(bytearray(_PIECE_BYTES))
        with path.open("rb", buffering=0) as file:
            for entry in pending:  # next() of a list's iterator is atomic
                if damaged:
                    return
                if _checksum(file, entry, piece) != entry.checksum:
                    damaged.append(entry)

    threads = min(os.cpu_count() or 1, _MAX_THREADS, len(known))
    if threads < 2:
        check_entries()
    else:
        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(check_entries) for _ in range(threads)]:
                future.result()
    return damaged[0] if damaged else None


def _checksum(file: IO[bytes], entry: StoredEntry, piece: memoryview) -> int:
    file.seek(entry.offset)
    checksum, left = 0, entry.size
    while left:
        count = file.readinto(piece[:left])  # type: ignore[attr-defined]
        if not count:
            return -1  # the file ends within the entry
        checksum = zlib.crc32(piece[:count], checksum)  # without the GIL, as readinto()
        left -= count
    return checksum
