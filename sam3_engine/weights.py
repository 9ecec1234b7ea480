"""Find the weights: a file on this machine, or a file on the Hugging Face hub.

A file on the hub is looked up in the local Hugging Face cache first, without a network call, and then downloaded. If
you name nothing, ``sam3.pt`` in a folder takes precedence over the gated repository ``facebook/sam3``.

Importing this module does not import torch.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from .checkpoints.safetensors_headers import INDEX_SUFFIX, read_index
from .errors import WeightFileError, WeightsError, message_of, quote

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

logger = logging.getLogger(__name__)


class _Published(NamedTuple):
    """The weights that Meta publishes in a repository."""

    title: str
    file_name: str
    size: str


_DEFAULT = "facebook/sam3"
_PUBLISHED = {
    "facebook/sam3": _Published("SAM 3", "sam3.pt", "3.45 GB"),
    "facebook/sam3.1": _Published("SAM 3.1", "sam3.1_multiplex.pt", "3.50 GB"),
}
OFFICIAL_NAMES = tuple(_PUBLISHED)
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", INDEX_SUFFIX)

_MARKS = "\u200e\u202a\u202c\ufeff"  # invisible: the direction of the text, or the byte order
_ESCAPED = "\a\b\f\n\r\t\v\0\1\2\3\4\5\6\7"  # what a single backslash and the next character mean in Python
_LOG_IN = "run `hf auth login` and paste the token, or set the environment variable HF_TOKEN"


def find_checkpoint(weights: str = "", weights_folder: Path | None = None) -> Path:
    """Return the path of a SAM 3 checkpoint; download it if necessary.

    A download shows its progress on a terminal, resumes if the connection is cut, and stays in the Hugging Face cache.
    It does not resume in a later call: huggingface_hub then starts over.

    Args:
        weights: path of a local checkpoint, or a name on Hugging Face: ``facebook/sam3``, ``facebook/sam3.1`` or
            ``owner/repository/path/in/it.safetensors``, or the address of such a file. A file that exists takes
            precedence. :func:`without_quotes` says what is removed around the value. Blank: ``sam3.pt`` in
            ``weights_folder``, or else ``facebook/sam3``.
        weights_folder: a folder that may contain ``sam3.pt``; searched only if ``weights`` is blank.

    Returns:
        The path of the file. If you name the index of a sharded checkpoint on Hugging Face, its shards are beside it.

    Raises:
        WeightFileError: ``weights`` names no file, neither on this machine nor on the Hugging Face hub.
        WeightsError: the weights are not on this machine and cannot be downloaded.
        CheckpointError: the index of a sharded checkpoint is invalid.
    """
    typed = without_quotes(weights)
    if typed:
        named = _locate(_name_in_address(typed))
        return named.find() if isinstance(named, _HubFile) else named
    file_name = _PUBLISHED[_DEFAULT].file_name
    place = weights_folder / file_name if weights_folder else None
    if place and place.is_file():
        return place
    return _HubFile(_DEFAULT, file_name, place=place).find()


def check_weights(weights: str) -> None:
    """Check that ``weights`` is blank, names a file on this machine, or is spelled like a name on Hugging Face.

    This uses no network: a name on Hugging Face is not looked up.

    Args:
        weights: as :func:`find_checkpoint` takes it.

    Raises:
        WeightFileError: it is none of these.
    """
    typed = without_quotes(weights)
    if typed:
        _locate(_name_in_address(typed))


def without_quotes(weights: str) -> str:
    """Return a path or a name without the spaces, quotation marks and invisible characters around it.

    Windows' "Copy as path" adds quotation marks, and its Properties dialog the mark that text runs from left to right.
    """
    typed = weights.strip().strip(_MARKS).strip()
    if len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "\"'":
        typed = typed[1:-1].strip()
    return typed


def _locate(typed: str) -> Path | _HubFile:
    """Return the file on this machine, or the name on Hugging Face, that was typed."""
    path = Path(os.path.expanduser(typed))
    try:
        if path.is_file():
            return path
    except OSError as error:  # for example a folder that this user cannot read, or a network drive that is gone
        raise WeightFileError(
            "weights", typed, f"this file cannot be opened ({error.strerror}); expected a SAM 3 checkpoint"
        ) from error
    named = _parse_name(typed)
    official = named is not None and named.official
    if path.is_dir():
        files = _weight_files_in(path)
        if files or not official:
            raise _is_a_folder(typed, files)
    elif os.path.lexists(path):
        raise WeightFileError("weights", typed, "this is not a file; expected a SAM 3 checkpoint")
    if named is None:
        raise _no_such_file(typed)
    folder = Path(typed.partition("/")[0])
    if folder.is_dir() and not official:  # a mistyped path: do not ask the hub
        raise WeightFileError(
            "weights",
            typed,
            f"there is no such file{_looked_for(typed)}; expected a SAM 3 checkpoint. It is not looked up on Hugging "
            f"Face, because the folder {_quote_path(folder)} exists",
        )
    return named


def _weight_files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    except OSError:
        return []


def _is_a_folder(typed: str, files: Sequence[Path]) -> WeightFileError:
    """Return the error for a folder, with the weight files in it: none of them is chosen silently."""
    some = " or ".join(map(_quote_path, files[:3]))
    hint = f", such as {some}" if files else ""
    return WeightFileError("weights", typed, f"this is a folder; expected a SAM 3 checkpoint{hint}")


def _no_such_file(typed: str) -> WeightFileError:
    if "://" in typed:
        problem = "this is not the address of a file in a repository on Hugging Face"
    else:
        problem = f"there is no such file{_looked_for(typed)}"
    if any(character in typed for character in _ESCAPED):  # as in "C:\temp", where \t is a tab
        problem += r". It has a control character: in Python code, write r'C:\temp\sam3.pt' or 'C:/temp/sam3.pt'"
    hint = "" if Path(os.path.expanduser(typed)).is_absolute() else f", or {_expected_name(typed)}"
    return WeightFileError("weights", typed, f"{problem}; expected a SAM 3 checkpoint{hint}")


def _expected_name(typed: str) -> str:
    if _looks_like_a_name(typed) and not typed.lower().endswith(SUFFIXES):
        if typed.count("/") == 1:
            return f"a name on Hugging Face with the file in the repository: {typed}/file.safetensors"
        return (
            f"a name on Hugging Face that ends in {', '.join(SUFFIXES[:-1])} or {INDEX_SUFFIX}; other formats, such as "
            "GGUF, are not supported"
        )
    return f"a name on Hugging Face: {', '.join(OFFICIAL_NAMES)} or owner/repository/file.safetensors"


def _looked_for(typed: str) -> str:
    """Return the absolute path of a relative one, for messages."""
    path = Path(os.path.expanduser(typed)).absolute()
    return "" if path == Path(typed) else f" (looked for {_quote_path(path)})"  # on Windows, C:/a equals C:\a


def _quote_path(path: Path) -> str:
    return quote(path.absolute(), limit=1000)


def _name_in_address(typed: str) -> str:
    """Return the name of the file that an address on Hugging Face shows; any other text as it is.

    Raises:
        WeightFileError: the address is not of the revision ``main``.
    """
    address = re.fullmatch(r"(?i:https?://(?:www\.)?huggingface\.co|hf:/)/([^?#]+)(?:[?#].*)?", typed)
    if not address:
        return typed
    name = unquote(address[1]).rstrip("/")
    shown = re.fullmatch(r"([^/]+/[^/]+)/(?:blob|resolve|raw|tree)/(.+)", name)
    if not shown:
        return name
    revision, _, file = shown[2].partition("/")
    if revision != "main":
        raise WeightFileError(
            "weights", typed, f"the revision {quote(revision)} cannot be named; expected an address with main"
        )
    return f"{shown[1]}/{file}".rstrip("/")


def _looks_like_a_name(typed: str) -> bool:
    parts = typed.split("/")
    looks_like_a_path = typed.startswith("~") or "\\" in typed or ":" in typed or not typed.isprintable()
    return len(parts) > 1 and not looks_like_a_path and not any(part in ("", ".", "..") for part in parts)


def _parse_name(typed: str) -> _HubFile | None:
    """Return the file that ``owner/repository/path/in/it`` or an official name means, or None if it is no such name.

    The repository is checked when the file is looked up, because huggingface_hub knows the rules.
    """
    parts = typed.split("/")
    repository = "/".join(parts[:2])
    if repository.lower() in _PUBLISHED:
        repository = repository.lower()
        if not any(parts[2:]):
            return _HubFile(repository, _PUBLISHED[repository].file_name, typed)
    if len(parts) < 3 or not _looks_like_a_name(typed) or not typed.lower().endswith(SUFFIXES):
        return None
    return _HubFile(repository, "/".join(parts[2:]), typed)


@dataclass(frozen=True)
class _HubFile:
    """A checkpoint on the Hugging Face hub.

    Attributes:
        repository: for example ``facebook/sam3``.
        name: path of the file in the repository.
        typed: what the user typed; blank if nothing.
        place: path where a file that the user downloads would be found, or None.
    """

    repository: str
    name: str
    typed: str = ""
    place: Path | None = None

    @property
    def official(self) -> bool:
        """Whether Meta publishes the repository."""
        return self.repository in _PUBLISHED

    def find(self) -> Path:
        """Return the path of the file in the Hugging Face cache, beside its shards if it is an index.

        Raises:
            WeightFileError, WeightsError, CheckpointError: see :func:`find_checkpoint`.
        """
        path = self._find_part(self.name)
        if self.name.lower().endswith(INDEX_SUFFIX):
            folder, slash, _ = self.name.rpartition("/")
            # the index may be older than the repository's latest commit: its shards must come from the same one
            commit = path.parents[self.name.count("/")].name
            for shard in sorted(set(read_index(path, path).values())):
                self._find_part(folder + slash + shard, commit)
        return path

    def _find_part(self, name: str, revision: str | None = None) -> Path:
        """Return the path of the file, or of one of its shards, in the Hugging Face cache; download it if necessary."""
        try:
            self._check_repository()
            return self._cached(name, revision) or self._downloaded(name, revision)
        except (WeightFileError, WeightsError):
            raise
        except Exception as error:  # the network, proxies, the environment or a damaged cache can raise nearly anything
            reason = message_of(error).rstrip(".")
            raise self._unavailable(f"The download of {name} failed: {reason}.") from error

    def _check_repository(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repository)
        except HFValidationError:
            raise _no_such_file(self.typed) from None

    def _cached(self, name: str, revision: str | None) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repository, name, None, revision)
        return Path(cached) if isinstance(cached, str) else None

    def _downloaded(self, name: str, revision: str | None) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            FileMetadataError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        try:
            if revision is None:  # not for the shards of an index that was just found
                self._reach_hub(name)
            size = f"{_PUBLISHED[self.repository].size}, " if self._is_published(name) else ""
            logger.info("Downloading %s from %s (%sonce).", name, self.repository, size)
            return Path(hf_hub_download(self.repository, name, revision=revision))
        except GatedRepoError as error:
            raise self._no_access("") from error
        except RepositoryNotFoundError as error:  # the hub's answer for a private one, too
            if self.official:
                raise self._no_access("") from error
            raise WeightFileError(
                "weights",
                self.typed,
                f"there is no such file on this machine{_looked_for(self.typed)}, and the Hugging Face hub has no "
                f"repository {self.repository}, or it is private. If it is private, create a token that can read it at "
                f"https://huggingface.co/settings/tokens, then {_LOG_IN}",
            ) from error
        except LocalEntryNotFoundError as error:  # the cause says why
            if isinstance(error.__cause__, HfHubHTTPError):
                raise self._refused(name, error.__cause__) from error
            if isinstance(error.__cause__, FileMetadataError):
                raise self._unavailable(
                    f"The response to the request for {name} did not come from the Hugging Face hub. Check the proxy, "
                    "whether the network has a login page, and HF_ENDPOINT."
                ) from error
            raise self._unreachable(name) from error
        except EntryNotFoundError as error:
            raise self._missing(name) from error
        except HfHubHTTPError as error:
            raise self._refused(name, error) from error

    def _reach_hub(self, name: str) -> None:
        """Request the file's headers once, because hf_hub_download retries for a long time if it cannot connect.

        Raises:
            WeightsError: the hub cannot be reached.
            HfHubHTTPError: the hub refuses the request for a reason that does not pass.
        """
        import httpx
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        logger.info("Looking for %s of %s on Hugging Face.", name, self.repository)
        try:
            get_hf_file_metadata(hf_hub_url(self.repository, name))
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, OfflineModeIsEnabled) as error:
            raise self._unreachable(name) from error
        except HfHubHTTPError as error:
            if not _may_pass(error.response.status_code):
                raise

    def _is_published(self, name: str) -> bool:
        """Return whether the file is the one that Meta publishes in this repository."""
        return self.official and name == _PUBLISHED[self.repository].file_name

    def _no_access(self, status: str) -> WeightsError:
        if self.official:
            problem = f"The {_PUBLISHED[self.repository].title} weights are gated. To get them"
        else:
            problem = "The repository is gated or private, or your token is not valid. To get the weights"
        return self._unavailable(
            f"No access to {self.repository}{status}. {problem}: 1. request access at "
            f"https://huggingface.co/{self.repository} and wait for approval; 2. create a read token at "
            f"https://huggingface.co/settings/tokens; 3. {_LOG_IN}.",
            exists=True,
        )

    def _refused(self, name: str, error: HfHubHTTPError) -> WeightsError:
        """Return the error for a response of the hub with an HTTP error status."""
        status = error.response.status_code
        if status in (401, 403):
            return self._no_access(f" (HTTP {status})")
        advice = " Try again later." if _may_pass(status) else ""
        return self._unavailable(f"The Hugging Face hub returned HTTP {status} for {name}.{advice}")

    def _unreachable(self, name: str) -> WeightsError:
        return self._unavailable(
            f"The Hugging Face hub cannot be reached, and {name} is not in the local Hugging Face cache. Check the "
            "network and HF_HUB_OFFLINE, then try again."
        )

    def _missing(self, name: str) -> WeightFileError | WeightsError:
        """Return the error for a file that the repository does not have."""
        if self._is_published(name):
            return self._unavailable(f"{self.repository} has no file {name}.")
        where = f"{self.repository} on the Hugging Face hub has no file {name}"
        if name == self.name:
            looked_for = _looked_for(self.typed)
            return WeightFileError(
                "weights", self.typed, f"there is no such file on this machine{looked_for}, and {where}"
            )
        return WeightFileError("weights", self.typed, f"{where}, which this index names")

    def _unavailable(self, reason: str, *, exists: bool = False) -> WeightsError:
        """Return the error for a file that cannot be downloaded.

        Args:
            reason: what went wrong.
            exists: whether the repository is known to exist; otherwise, the name may be a mistyped path.
        """
        source = self.name
        if source.lower().endswith(INDEX_SUFFIX):
            source += " and the files that it names, into one folder,"
        if self.official or exists:
            source += f" from https://huggingface.co/{self.repository}"
        if not self.official:
            path = _quote_path(Path(os.path.expanduser(self.typed)))
            reason = f"There is no file {path} on this machine, so it was looked up as a name on Hugging Face. {reason}"
        return WeightsError(reason, self.place, source=source)


def _may_pass(status: int) -> bool:
    """Return whether a request with this HTTP status may succeed later."""
    return status in (408, 429) or status >= 500
