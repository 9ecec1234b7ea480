"""How sam3_batch grows with its workers: images per second with one core and with two, Linux only.

    python -m benchmarks.many_images                # on the demo's network, six minutes
    python -m benchmarks.many_images --side 1200    # of larger pictures

Each worker is pinned to a core. With one worker, all the rest of Ray is pinned to that core, too, as on a machine that
has no other; once more with the rest left free on the other core, which two workers have not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
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
from sam3_batch.pipeline import REPOSITORY, Folder, Rows, Segmenter, decode, record, segment_folder, start_ray
from sam3_engine.settings import Settings
from testbed.scenes import draw_scene

_DRAWN = 20  # different pictures; the others are those again, which a worker has forgotten by then
_STEADY = (0.2, 0.8)  # the part of a run that counts: all workers have begun, none is through
_SETTINGS = Settings(input_text="shape", model_weight_file=str(REPOSITORY / "demo" / "sam3_shapes.pt"), cuda=False)


def _draw(folder: Path, count: int, side: int) -> None:
    random = np.random.default_rng(3)
    files = []
    for _ in range(_DRAWN):
        file = io.BytesIO()
        PIL.Image.fromarray(draw_scene(random, side * 3 // 2, side).image).save(file, "jpeg", quality=90)
        files.append(file.getvalue())
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(files[number % _DRAWN])


def _milliseconds_by_part(folder: Path) -> dict[str, float]:
    """For one image, on one core, without Ray: the network, and each thing that is done around it."""
    torch.set_num_threads(1)
    paths = pa.table({"path": Folder(str(folder)).files()[:_DRAWN]})
    segmenter = Segmenter(_SETTINGS, keep_pixels=False)
    segmenter(decode(paths, Folder(str(folder))))  # the first ones take longer
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        output = Folder(place)
        rows = Rows(output)
        for _ in range(3):
            steps = _steps(segmenter, Folder(str(folder)), output, rows)
            table = paths
            for name, step in steps.items():
                start = time.perf_counter()
                with watching({"network": (segmenter, "ask")}) as watched:
                    table = step(table)
                seconds.setdefault(name, []).append(time.perf_counter() - start - watched["network"])
                if watched["network"]:
                    seconds.setdefault("the network", []).append(watched["network"])
    return {name: 1000 * statistics.median(values) / _DRAWN for name, values in seconds.items()}


def _steps(
    segmenter: Segmenter, source: Folder, output: Folder, rows: Rows
) -> dict[str, Callable[[pa.Table], pa.Table]]:
    def add(recorded: pa.Table) -> pa.Table:
        rows.add(recorded)
        rows.flush()
        return recorded

    return {
        "read and decode": lambda paths: decode(paths, source),
        "masks to bits, in the worker": segmenter,
        "bits to COCO's encoding": lambda segmented: record(segmented, output, label_maps=False, overlays=False),
        "into the dataset, in the driver": add,
    }


@contextlib.contextmanager
def _workers_pinned() -> Iterator[None]:
    """Meanwhile, every worker that appears is pinned to the next core."""
    stop = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        while not stop.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in seen and "MapWorker" in process.name() + "".join(process.cmdline()):
                        for thread in process.threads():  # those that exist already do not follow
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
    """In the steady part of a run."""
    arrived: list[tuple[float, int]] = []
    add = Rows.add

    def noted(self: Rows, rows: pa.Table) -> None:
        add(self, rows)
        arrived.append((time.monotonic(), self.count))

    start_ray()
    with tempfile.TemporaryDirectory() as output, _workers_pinned(), mock.patch.object(Rows, "add", noted):
        rows = segment_folder(
            Folder(str(folder)),
            Folder(output),
            _SETTINGS,
            workers=(workers, workers),
            cpus_per_worker=1,
            gpus_per_worker=0,
        )
    low, high = (share * rows.count for share in _STEADY)
    steady = np.array([moment for moment in arrived if low <= moment[1] <= high])
    seconds, count = steady[-1] - steady[0]
    return float(count / seconds)


class _Idle:
    """A worker that does nothing."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def _idle_blocks_per_second() -> float:
    """Blocks that Ray passes through a task, a worker and a task that do nothing; in the steady part of a run."""
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
    variants = {"one": (1, True), "one, the rest free": (1, False), "two": (2, False)}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        _draw(Path(folder), count, side)
        for _ in range(repeat):
            for name, (workers, alone) in variants.items():
                pinned = ("--pinned",) if alone else ()
                said = last_line_of("benchmarks.many_images", "--run", folder, "--workers", workers, *pinned)
                rates[name].append(json.loads(said))
        parts = _milliseconds_by_part(Path(folder))
    one, free, two = (statistics.median(rates[name]) for name in variants)
    blocks = json.loads(last_line_of("benchmarks.many_images", "--idle"))
    return "\n".join(
        [
            f"{count} pictures of {side * 3 // 2}x{side}, {repeat} runs each, medians",
            f"one worker, all on one core      {one:6.1f} images per second",
            f"one worker, the rest elsewhere   {free:6.1f}",
            f"two workers, two cores           {two:6.1f}",
            f"efficiency                       {two / one / 2:6.2f} of the first, {two / free / 2:.2f} of the second",
            f"all around the network           {1000 / one - parts['the network']:6.1f} ms an image, of which",
            *(f"  {name:31}{milliseconds:6.2f}" for name, milliseconds in parts.items()),
            f"Ray alone, with nothing to do    {blocks:6.1f} blocks of images per second",
        ]
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_images", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=300, help="height of the pictures in pixels")
    parser.add_argument("--repeat", type=int, default=3)
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
