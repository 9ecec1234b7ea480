"""The Ray pipeline: from the paths in a folder to rows in the dataset.

    paths -> [tasks: decode images] -> [actors: segment, one model each] -> [tasks: encode rows] -> this process

Only this process writes to the dataset. Images are streamed: only the list of paths grows with the folder.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import sam3_batch
import sam3_engine
from sam3_engine.prompts import EverythingPrompt
from sam3_engine.settings import Settings

from .dataset import DatasetWriter, recorded_paths
from .folders import Folder
from .progress import Progress, Reporter, print_message
from .workers import Segmenter, choose_prompt, decode_images, encode_rows

if TYPE_CHECKING:
    import ray.data

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"))

_MAX_PATHS_PER_TASK = 64
_TASKS_PER_WORKER = 8  # at least this many, so that all workers finish at about the same time
_IMAGES_PER_DECODING = 8
# Tasks mostly wait for storage. If they asked for as many CPUs as a worker, Ray would run them inside the worker.
_CPUS_PER_TASK = 0.5
# Ray restarts killed workers and their blocks; this limits blocks that fail for other reasons.
_MAX_FAILED_BLOCKS = 10

_QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_BACKEND_LOG_LEVEL": "fatal"}


def start_ray(cpus: float = 0) -> None:
    """Connect to the cluster at ``RAY_ADDRESS``, or start Ray on this machine.

    Args:
        cpus: CPUs that all workers take together. If Ray starts on this machine, it is told of at least one more,
            even if there are fewer cores; otherwise, no CPU would be left for the tasks that decode and encode.
    """
    for name, value in _QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        offered = 1 + max(math.ceil(cpus), os.cpu_count() or 1)
        options = {"address": "local", "num_cpus": offered, "include_dashboard": False}
    ray.init(
        **options,
        runtime_env={"py_modules": [sam3_engine, sam3_batch]},  # other machines need no checkout
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def segment_folder(
    source: Folder,
    output: Folder,
    settings: Settings,
    *,
    workers: tuple[int, int],
    cpus_per_worker: float,
    gpus_per_worker: float,
    label_maps: bool = False,
    overlays: bool = False,
) -> Progress:
    """Segment the images of a folder that have no row in the dataset yet. Call :func:`start_ray` first.

    Args:
        source: folder of the images, including its subfolders.
        output: folder of the dataset, and of ``label_maps`` and ``overlays`` if requested.
        settings: the plugin's parameters, with a prompt. ``cuda`` follows from ``gpus_per_worker``.
        workers: smallest and largest number of workers.
        cpus_per_worker: CPUs that each worker takes.
        gpus_per_worker: GPUs that each worker takes; may be a fraction.
        label_maps: whether to write a label map of each image as PNG; ``mask_output`` says what it numbers.
        overlays: whether to write a PNG of each image with its instances tinted.

    Returns:
        What this run did. Images remain if their blocks failed; run again to retry them.

    Raises:
        OSError: a folder cannot be read or written.
        ray.exceptions.RayError: no worker can start, or too many blocks failed.
    """
    import ray.data

    paths = _paths_without_row(source, output)
    progress = Progress(remaining=len(paths))
    if not paths:
        return progress

    settings = dataclasses.replace(settings, cuda=gpus_per_worker > 0)
    _try_worker(settings, cpus_per_worker, gpus_per_worker)
    prompt = choose_prompt(settings).prompt
    encode = functools.partial(
        encode_rows,
        output=output,
        label_maps=label_maps,
        overlays=overlays,
        classes=settings.classes(prompt),
        smallest_on_top=isinstance(prompt, EverythingPrompt),
    )
    rows = (
        _read_paths(paths, workers[1])
        .map_batches(
            functools.partial(decode_images, source=source),
            batch_format="pyarrow",
            batch_size=_IMAGES_PER_DECODING,
            num_cpus=_CPUS_PER_TASK,
        )
        .map_batches(
            Segmenter,
            batch_format="pyarrow",
            batch_size=None,
            fn_constructor_args=(settings,),
            fn_constructor_kwargs={"keep_pixels": overlays},
            compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
        )
        .map_batches(
            encode,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_CPUS_PER_TASK,
        )
    )
    writer = DatasetWriter(output)
    reporter = Reporter()
    try:
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.add(table)
            progress = progress.after(table)
            reporter.report(progress)
    finally:
        writer.flush()
    return progress


def _paths_without_row(source: Folder, output: Folder) -> list[str]:
    """Return the images that are not in the dataset yet, and print how many there are."""
    files = source.files()
    images = [path for path in files if Path(path).suffix.lower() in _SUFFIXES]
    recorded = recorded_paths(output)
    paths = [path for path in images if path not in recorded]
    print_message(
        f"{len(images)} images, {len(images) - len(paths)} already in the dataset; "
        f"{len(files) - len(images)} other files ignored"
    )
    return paths


def _try_worker(settings: Settings, cpus: float, gpus: float) -> None:
    """Load the model once in a separate task, so that errors are reported at once.

    If an actor of the pipeline cannot load the model, Ray retries for a long time before it reports the error.
    """
    import ray

    task = ray.remote(_load_model).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    ray.get(task.remote(settings))


def _load_model(settings: Settings) -> None:
    Segmenter(settings, keep_pixels=False)


def _read_paths(paths: Sequence[str], most_workers: int) -> ray.data.Dataset:
    """Return the paths as a Ray dataset with one block per task."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = _MAX_FAILED_BLOCKS
    size = max(1, min(_MAX_PATHS_PER_TASK, len(paths) // (_TASKS_PER_WORKER * most_workers)))
    blocks = [pa.table({"path": paths[start : start + size]}) for start in range(0, len(paths), size)]
    return ray.data.from_arrow(blocks)
