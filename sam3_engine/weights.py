"""Where the checkpoint comes from.

Searched in this order: a file that the user names, ``sam3.pt`` in a folder of the plugin, the local Hugging Face
cache (no network call), a download from the gated repository ``facebook/sam3``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .parsing import quote

logger = logging.getLogger(__name__)

REPOSITORY = "facebook/sam3"
FILE_NAME = "sam3.pt"

_ACCESS_STEPS = (
    f"The SAM 3 weights are gated. To get them: 1. request access at https://huggingface.co/{REPOSITORY} and wait "
    "for the approval; 2. create a read token at https://huggingface.co/settings/tokens; 3. run `hf auth login` and "
    "paste the token, or set the environment variable HF_TOKEN."
)


class WeightsError(RuntimeError):
    """The checkpoint could not be had; the message says what the user can do."""


def find_checkpoint(model_weight_file: str, plugin_weights: Path) -> Path:
    """Find the SAM 3 checkpoint, downloading it if need be.

    A download goes on where it was when the connection is cut (not in a later call: huggingface_hub then begins
    again), shows its progress on a terminal and stays in the Hugging Face cache.

    Args:
        model_weight_file: path of a local checkpoint; blank to use the published weights.
        plugin_weights: folder that may hold a ``sam3.pt``.

    Returns:
        Path of an existing file.

    Raises:
        ValueError: ``model_weight_file`` does not name a file.
        WeightsError: the published weights are neither here nor can be downloaded.
    """
    if model_weight_file.strip():
        named = os.path.expanduser(model_weight_file.strip())
        if not os.path.isfile(named):
            if os.path.isdir(named):
                reason = "this is a folder"
            else:
                reason = "this is not a file" if os.path.lexists(named) else "there is no such file"
            typed = quote(model_weight_file.strip(), limit=1000)
            raise ValueError(f"model_weight_file = {typed}: {reason}; expected a SAM 3 checkpoint.")
        return Path(named)

    beside_the_plugin = plugin_weights / FILE_NAME
    if beside_the_plugin.is_file():
        return beside_the_plugin
    place_by_hand = (
        f"Or put the file {FILE_NAME} at {beside_the_plugin}, or name its path in the parameter model_weight_file; "
        f"it is to be had at https://huggingface.co/{REPOSITORY}."
    )
    try:
        return _cached() or _downloaded(place_by_hand)
    except WeightsError:
        raise
    except Exception as error:  # of the network, proxies, the environment, a damaged cache: nearly any of them
        reason = str(error).rstrip(".")
        raise WeightsError(f"The download of {FILE_NAME} failed: {reason}. {place_by_hand}") from error


def _cached() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(REPOSITORY, FILE_NAME)
    return Path(cached) if isinstance(cached, str) else None


def _downloaded(place_by_hand: str) -> Path:
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
        raise WeightsError(f"No access to {REPOSITORY}. {_ACCESS_STEPS} {place_by_hand}") from error
    except LocalEntryNotFoundError as error:  # the hub could not be asked: the cause says why
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _refused(cause, place_by_hand) from error
        if isinstance(cause, FileMetadataError):
            raise WeightsError(
                f"What answers when asked for {FILE_NAME} is not the Hugging Face hub. Check the proxy, the login page "
                f"of the network if it has one, and HF_ENDPOINT. {place_by_hand}"
            ) from error
        raise WeightsError(
            f"The hub cannot be reached, and {FILE_NAME} is not in the local Hugging Face cache. "
            f"Check the network (and HF_HUB_OFFLINE), then run again. {place_by_hand}"
        ) from error
    except EntryNotFoundError as error:
        raise WeightsError(f"{REPOSITORY} has no file {FILE_NAME}. {place_by_hand}") from error
    except HfHubHTTPError as error:
        raise _refused(error, place_by_hand) from error


def _refused(error: Exception, place_by_hand: str) -> WeightsError:
    """The error for an answer of the hub that is no file, by its HTTP status."""
    status = error.response.status_code  # type: ignore[attr-defined]
    if status in (401, 403):
        return WeightsError(f"No access to {REPOSITORY} (HTTP {status}). {_ACCESS_STEPS} {place_by_hand}")
    advice = "Try again later. " if status in (408, 429) or status >= 500 else ""
    return WeightsError(f"The hub answered with HTTP {status} when asked for {FILE_NAME}. {advice}{place_by_hand}")
