"""Find the weights.

Searched in this order: the file that you name, ``sam3.pt`` in a folder, the local Hugging Face cache (no network call),
a download from the gated repository ``facebook/sam3``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WeightFileError, WeightsError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

logger = logging.getLogger(__name__)

REPOSITORY = "facebook/sam3"
FILE_NAME = "sam3.pt"

_ACCESS_STEPS = (
    f"The SAM 3 weights are gated. To get them: 1. request access at https://huggingface.co/{REPOSITORY} and wait "
    "for approval; 2. create a read token at https://huggingface.co/settings/tokens; 3. run `hf auth login` and "
    "paste the token, or set the environment variable HF_TOKEN."
)


def find_checkpoint(weights: str = "", weights_folder: Path | None = None) -> Path:
    """Return the path of the SAM 3 checkpoint; download it if necessary.

    A download shows its progress on a terminal, resumes if the connection is cut, and stays in the Hugging Face cache.
    It does not resume in a later call: huggingface_hub then starts over.

    Args:
        weights: path of a local checkpoint; blank for the published weights.
        weights_folder: a folder that may contain ``sam3.pt``.

    Raises:
        WeightFileError: ``weights`` does not name a file.
        WeightsError: the published weights are not on this machine and cannot be downloaded.
    """
    if weights.strip():
        return _named(weights.strip())
    place = weights_folder / FILE_NAME if weights_folder else None
    if place and place.is_file():
        return place
    try:
        return _cached() or _downloaded(place)
    except WeightsError:
        raise
    except Exception as error:  # the network, proxies, the environment or a damaged cache can raise nearly anything
        reason = str(error).rstrip(".")
        raise WeightsError(f"The download of {FILE_NAME} failed: {reason}.", place) from error


def _named(weights: str) -> Path:
    path = os.path.expanduser(weights)
    if os.path.isfile(path):
        return Path(path)
    if os.path.isdir(path):
        reason = "this is a folder"
    else:
        reason = "this is not a file" if os.path.lexists(path) else "there is no such file"
    raise WeightFileError("weights", weights, f"{reason}; expected a SAM 3 checkpoint")


def _cached() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(REPOSITORY, FILE_NAME)
    return Path(cached) if isinstance(cached, str) else None


def _downloaded(place: Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    logger.info("Downloading %s from %s (3.45 GB, once).", FILE_NAME, REPOSITORY)
    try:
        return Path(hf_hub_download(REPOSITORY, FILE_NAME))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise WeightsError(f"No access to {REPOSITORY}. {_ACCESS_STEPS}", place) from error
    except LocalEntryNotFoundError as error:  # the cause says why
        if isinstance(error.__cause__, HfHubHTTPError):
            raise WeightsError(_refusal(error.__cause__), place) from error
        if isinstance(error.__cause__, FileMetadataError):
            raise WeightsError(
                f"The response to the request for {FILE_NAME} did not come from the Hugging Face hub. Check the proxy, "
                "whether the network has a login page, and HF_ENDPOINT.",
                place,
            ) from error
        raise WeightsError(
            f"The Hugging Face hub cannot be reached, and {FILE_NAME} is not in the local Hugging Face cache. Check "
            "the network and HF_HUB_OFFLINE, then try again.",
            place,
        ) from error
    except EntryNotFoundError as error:
        raise WeightsError(f"{REPOSITORY} has no file {FILE_NAME}.", place) from error
    except HfHubHTTPError as error:
        raise WeightsError(_refusal(error), place) from error


def _refusal(error: HfHubHTTPError) -> str:
    """Return the reason for a response of the hub with an HTTP error status."""
    status = error.response.status_code
    if status in (401, 403):
        return f"No access to {REPOSITORY} (HTTP {status}). {_ACCESS_STEPS}"
    advice = " Try again later." if status in (408, 429) or status >= 500 else ""
    return f"The Hugging Face hub returned HTTP {status} for {FILE_NAME}.{advice}"
