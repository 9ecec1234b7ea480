"""Find the weights: a file on this machine, or a file on the Hugging Face hub.

A file on the hub is looked up in the local Hugging Face cache first, without a network call, and then downloaded. If
you name nothing, ``sam3.pt`` in a folder takes precedence over the gated repository ``facebook/sam3``.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .checkpoints.safetensors_headers import INDEX_SUFFIX, read_index
from .errors import WeightFileError, WeightsError, quote

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
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", INDEX_SUFFIX)

_LOG_IN = "run `hf auth login` and paste the token, or set the environment variable HF_TOKEN"


def find_checkpoint(weights: str = "", weights_folder: Path | None = None) -> Path:
    """Return the path of a SAM 3 checkpoint; download it if necessary.

    A download shows its progress on a terminal, resumes if the connection is cut, and stays in the Hugging Face cache.
    It does not resume in a later call: huggingface_hub then starts over.

    Args:
        weights: path of a local checkpoint, or a name on Hugging Face: ``facebook/sam3``, ``facebook/sam3.1`` or
            ``owner/repository/path/in/it.safetensors``. A path that exists takes precedence. Blank: ``sam3.pt`` in
            ``weights_folder``, or else ``facebook/sam3``.
        weights_folder: a folder that may contain ``sam3.pt``; searched only if ``weights`` is blank.

    Returns:
        The path of the file. If you name the index of a sharded checkpoint on Hugging Face, its shards are beside it.

    Raises:
        WeightFileError: ``weights`` names no file, neither on this machine nor on the Hugging Face hub.
        WeightsError: the weights are not on this machine and cannot be downloaded.
        CheckpointError: the index of a sharded checkpoint is invalid.
    """
    typed = weights.strip()
    if typed:
        return _find_named(typed)
    file_name = _PUBLISHED[_DEFAULT].file_name
    place = weights_folder / file_name if weights_folder else None
    if place and place.is_file():
        return place
    return _HubFile(_DEFAULT, file_name, place=place).find()


def _find_named(typed: str) -> Path:
    path = os.path.expanduser(typed)
    if os.path.isfile(path):
        return Path(path)
    if os.path.lexists(path):
        reason = "this is a folder" if os.path.isdir(path) else "this is not a file"
        raise WeightFileError("weights", typed, f"{reason}; expected a SAM 3 checkpoint")
    if typed in _PUBLISHED:
        return _HubFile(typed, _PUBLISHED[typed].file_name, typed).find()
    named = _parse_name(typed)
    if named is None:
        raise _no_such_file(typed)
    folder = typed.partition("/")[0]
    if os.path.isdir(folder):  # a mistyped path: do not ask the hub
        raise WeightFileError(
            "weights",
            typed,
            "there is no such file; expected a SAM 3 checkpoint. It is not looked up on Hugging Face, because there is "
            f"a folder {quote(folder)} here",
        )
    return named.find()


def _no_such_file(typed: str) -> WeightFileError:
    hint = ""
    if not Path(os.path.expanduser(typed)).is_absolute():
        hint = f", or a name on Hugging Face: {', '.join(_PUBLISHED)} or owner/repository/file.safetensors"
    return WeightFileError("weights", typed, f"there is no such file; expected a SAM 3 checkpoint{hint}")


def _parse_name(typed: str) -> _HubFile | None:
    """Return the file that ``owner/repository/path/in/it`` names, or None if this is not such a name.

    The repository is checked when the file is looked up, because huggingface_hub knows the rules.
    """
    owner, *rest = parts = typed.split("/")
    looks_like_a_path = owner.startswith("~") or "\\" in typed or ":" in typed or not typed.isprintable()
    if looks_like_a_path or len(parts) < 3 or any(part in ("", ".", "..") for part in parts):
        return None
    if not typed.lower().endswith(_SUFFIXES):
        return None
    return _HubFile(f"{owner}/{rest[0]}", "/".join(rest[1:]), typed)


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
            reason = str(error).rstrip(".")
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

        published = _PUBLISHED.get(self.repository)
        size = f"{published.size}, " if published and name == published.file_name else ""
        logger.info("Downloading %s from %s (%sonce).", name, self.repository, size)
        try:
            return Path(hf_hub_download(self.repository, name, revision=revision))
        except GatedRepoError as error:
            raise self._unavailable(f"No access to {self.repository}. {self._access_steps}") from error
        except RepositoryNotFoundError as error:  # the hub's answer for a private one, too
            if published:
                raise self._unavailable(f"No access to {self.repository}. {self._access_steps}") from error
            raise WeightFileError(
                "weights",
                self.typed,
                f"there is no such file on this machine, and the Hugging Face hub has no repository {self.repository}, "
                f"or it is private. If it is private, create a token that can read it at "
                f"https://huggingface.co/settings/tokens, then {_LOG_IN}",
            ) from error
        except LocalEntryNotFoundError as error:  # the cause says why
            if isinstance(error.__cause__, HfHubHTTPError):
                raise self._unavailable(self._refusal(name, error.__cause__)) from error
            if isinstance(error.__cause__, FileMetadataError):
                raise self._unavailable(
                    f"The response to the request for {name} did not come from the Hugging Face hub. Check the proxy, "
                    "whether the network has a login page, and HF_ENDPOINT."
                ) from error
            raise self._unavailable(
                f"The Hugging Face hub cannot be reached, and {name} is not in the local Hugging Face cache. Check "
                "the network and HF_HUB_OFFLINE, then try again."
            ) from error
        except EntryNotFoundError as error:
            raise self._missing(name) from error
        except HfHubHTTPError as error:
            raise self._unavailable(self._refusal(name, error)) from error

    @property
    def _access_steps(self) -> str:
        if self.repository in _PUBLISHED:
            problem = f"The {_PUBLISHED[self.repository].title} weights are gated. To get them"
        else:
            problem = "The repository is gated or private, or your token is not valid. To get the weights"
        return (
            f"{problem}: 1. request access at https://huggingface.co/{self.repository} and wait for approval; "
            f"2. create a read token at https://huggingface.co/settings/tokens; 3. {_LOG_IN}."
        )

    def _refusal(self, name: str, error: HfHubHTTPError) -> str:
        """Return the reason for a response of the hub with an HTTP error status."""
        status = error.response.status_code
        if status in (401, 403):
            return f"No access to {self.repository} (HTTP {status}). {self._access_steps}"
        advice = " Try again later." if status in (408, 429) or status >= 500 else ""
        return f"The Hugging Face hub returned HTTP {status} for {name}.{advice}"

    def _missing(self, name: str) -> WeightFileError | WeightsError:
        """Return the error for a file that the repository does not have."""
        if self.typed in ("", self.repository):
            return self._unavailable(f"{self.repository} has no file {name}.")
        where = f"{self.repository} on the Hugging Face hub has no file {name}"
        if name == self.name:
            return WeightFileError("weights", self.typed, f"there is no such file on this machine, and {where}")
        return WeightFileError("weights", self.typed, f"{where}, which this index names")

    def _unavailable(self, reason: str) -> WeightsError:
        if self.typed not in ("", self.repository):  # perhaps a mistyped path
            reason = f"There is no file {quote(self.typed, limit=1000)} on this machine. {reason}"
        files = self.name
        if files.lower().endswith(INDEX_SUFFIX):
            files += " and the files that it names, into one folder,"
        return WeightsError(reason, self.place, source=f"{files} from https://huggingface.co/{self.repository}")
