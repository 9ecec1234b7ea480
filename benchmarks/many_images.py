"""Measure how sam3_batch scales: images per second with one worker and with two. Linux only.

    python -m benchmarks.many_images                # the demo's network, six minutes
    python -m benchmarks.many_images --side 1200    # larger images

Each worker is pinned to a core. One worker is measured twice: with the rest of Ray pinned to the same core, as on a
machine with a single core, and with the rest of Ray free to use the other core. Two workers leave no core free.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import torch

from benchmarks.timing import last_line_of, watching
from sam3_batch.dataset import DatasetWriter
from sam3_batch.folders import Folder
from sam3_batch.pipeline import segment_folder, start_ray
from sam3_batch.workers import Segmenter, decode_images, encode_rows
from sam3_engine.settings import Settings
from testbed.scenes import draw_scene

if sys.platform != "linux":
    raise SystemExit("python -m benchmarks.many_images runs on Linux only, because it pins threads to cores.")

_CHECKPOINT = Path(__file__).resolve().parent.parent / "demo" / "sam3_shapes.pt"
_SETTINGS = Settings(input_text="shape", model_weight_file=str(_CHECKPOINT), cuda=False)

_DISTINCT_IMAGES = 20  # repeated to fill the folder; more than a worker caches
_STEADY = (0.2, 0.8)  # share of a run that is measured: all workers have started, none has finished


def _draw_images(folder: Path, count: int, side: int) -> None:
    random = np.random.default_rng(3)
    files = []
    for _ in range(_DISTINCT_IMAGES):
        file = io.BytesIO()
        PIL.Image.fromarray(draw_scene(random, side * 3 // 2, side).image).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(files[number % _DISTINCT_IMAGES])


def _milliseconds_per_step(folder: Path) -> dict[str, float]:
    """Return the time per image of the network and of each step around it, on one core and without Ray."""
    torch.set_num_threads(1)
    source = Folder(str(folder))
    paths = pa.table({"path": source.files()[:_DISTINCT_IMAGES]})
    segmenter = Segmenter(_SETTINGS, keep_pixels=False)
    segmenter(decode_images(paths, source))  # the first images take longer
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as output:
        steps = _steps(segmenter, source, Folder(output))
        for _ in range(3):
            table = paths
            for name, step in steps.items():
                start = time.perf_counter()
                with watching({"network": (segmenter, "predict")}) as watched:
                    table = step(table)
                seconds.setdefault(name, []).append(time.perf_counter() - start - watched["network"])
                if watched["network"]:
                    seconds.setdefault("network", []).append(watched["network"])
    return {name: 1000 * statistics.median(values) / _DISTINCT_IMAGES for name, values in seconds.items()}


def _steps(segmenter: Segmenter, source: Folder, output: Folder) -> dict[str, Callable[[pa.Table], pa.Table]]:
    writer = DatasetWriter(output)

    def write(rows: pa.Table) -> pa.Table:
        writer.add(rows)
        writer.flush()
        return rows

    return {
        "read and decode": lambda paths: decode_images(paths, source),
        "pack masks, in the worker": segmenter,
        "encode masks for COCO": lambda segmented: encode_rows(segmented, output, label_maps=False, overlays=False),
        "write rows, in the driver": write,
    }


@contextlib.contextmanager
def _workers_pinned() -> Iterator[None]:
    """Pin each worker that starts to the next core."""
    stop = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        while not stop.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in seen and "MapWorker" in process.name() + "".join(process.cmdline()):
                        for thread in process.threads():  # pinning a process leaves its running threads alone
                            os.sched_setaffinity(thread.id, {len(seen) % (os.cpu_count() or 1)})
                        seen.add(process.pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _images_per_second(folder: Path, workers: int) -> float:
    """Return the speed of the steady part of a run."""
    arrivals: list[tuple[float, int]] = [(time.monotonic(), 0)]
    add = DatasetWriter.add

    def add_and_note(self: DatasetWriter, rows: pa.Table) -> None:
        add(self, rows)
        arrivals.append((time.monotonic(), arrivals[-1][1] + len(rows)))

    start_ray()
    with (
        tempfile.TemporaryDirectory() as output,
        _workers_pinned(),
        mock.patch.object(DatasetWriter, "add", add_and_note),
    ):
        progress = segment_folder(
            Folder(str(folder)),
            Folder(output),
            _SETTINGS,
            workers=(workers, workers),
            cpus_per_worker=1,
            gpus_per_worker=0,
        )
    low, high = (share * progress.images for share in _STEADY)
    steady = np.array([arrival for arrival in arrivals if low <= arrival[1] <= high])
    seconds, count = steady[-1] - steady[0]
    return float(count / seconds)


class _Idle:
    """A worker that returns what it gets."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def _idle_blocks_per_second() -> float:
    """Return how fast Ray passes blocks through a task, a worker and a task that do nothing."""
    start_ray()
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = (
        ray.data.from_arrow([pa.table({"path": [str(number)]}) for number in range(1000)])
        .map_batches(_Idle().__call__, batch_format="pyarrow", batch_size=None)
        .map_batches(_Idle, batch_format="pyarrow", batch_size=None, concurrency=1)
        .map_batches(_Idle().__call__, batch_format="pyarrow", batch_size=None)
    )
    moments = [time.monotonic() for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]
    first, last = (int(share * len(moments)) for share in _STEADY)
    return (last - first) / (moments[last] - moments[first])


def _measure(count: int, side: int, repeat: int) -> str:
    variants = {"one, shared core": (1, True), "one, own core": (1, False), "two": (2, False)}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        _draw_images(Path(folder), count, side)
        for _ in range(repeat):
            for name, (workers, pin_all) in variants.items():
                pinned = ("--pinned",) if pin_all else ()
                said = last_line_of("benchmarks.many_images", "--run", folder, "--workers", workers, *pinned)
                rates[name].append(json.loads(said))
        steps = _milliseconds_per_step(Path(folder))
    shared, own, two = (statistics.median(rates[name]) for name in variants)
    blocks = json.loads(last_line_of("benchmarks.many_images", "--idle"))
    return "\n".join(
        [
            f"{count} images of {side * 3 // 2}x{side}, {repeat} runs each, medians",
            f"one worker, all of Ray on its core   {shared:6.1f} images per second",
            f"one worker, the rest elsewhere       {own:6.1f}",
            f"two workers, two cores               {two:6.1f}",
            f"efficiency against the first         {two / shared / 2:6.2f}",
            f"efficiency against the second        {two / own / 2:6.2f}",
            f"everything around the network        {1000 / shared - steps['network']:6.1f} ms per image, of which",
            *(f"  {name:35}{milliseconds:6.2f}" for name, milliseconds in steps.items()),
            f"Ray alone, with idle steps           {blocks:6.1f} blocks per second",
        ]
    )


def main() -> None:
    """Run the measurement that the command line selects."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_images", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="number of images")
    parser.add_argument("--side", type=int, default=300, help="height of the images in pixels")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.idle:
        print(json.dumps(_idle_blocks_per_second()))
        return
    if arguments.run is None:
        print(_measure(arguments.images, arguments.side, arguments.repeat))
        return
    if arguments.pinned:
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, {0})
    print(json.dumps(_images_per_second(arguments.run, arguments.workers)))


if __name__ == "__main__":
    main()
