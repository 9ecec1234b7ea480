"""How examples/ray_folder.py grows with its workers: images per second with one core and with two, Linux only.

    python -m benchmarks.many_images                # on the demo's network, five minutes
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
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import torch

from benchmarks.timing import last_line_of, seconds_of
from demo.scenes import draw_scene
from examples.ray_folder import REPOSITORY, Folder, Rows, segment_folder, start_ray
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.settings import Settings

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


def _seconds_of_the_network(folder: Path) -> float:
    """For one image, on one core, without anything around it; median."""
    torch.set_num_threads(1)
    predictor = Predictor(load_model(Path(_SETTINGS.model_weight_file), torch.device("cpu")))
    prompt = _SETTINGS.prompt()
    assert prompt is not None
    seconds = []
    for path in sorted(folder.iterdir())[:_DRAWN]:
        image = np.asarray(PIL.Image.open(path))
        seconds.append(seconds_of(lambda image=image: predictor.segment(predictor.encode_image(image), prompt)))  # type: ignore[misc]
    return statistics.median(seconds[2:])


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
    steady = [(when, count) for when, count in arrived if low <= count <= high]
    (first, count), (last, last_count) = steady[0], steady[-1]
    return (last_count - count) / (last - first)


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
        network = _seconds_of_the_network(Path(folder))
    one, free, two = (statistics.median(rates[name]) for name in variants)
    return "\n".join(
        [
            f"{count} pictures of {side * 3 // 2}x{side}, {repeat} runs each, medians",
            f"one worker, all on one core      {one:6.1f} images per second",
            f"one worker, the rest elsewhere   {free:6.1f}",
            f"two workers, two cores           {two:6.1f}",
            f"efficiency                       {two / one / 2:6.2f} of the first, {two / free / 2:.2f} of the second",
            f"network, on one core             {1000 * network:6.1f} ms an image",
            f"all around it, on the same core  {1000 * (1 / one - network):6.1f} ms an image",
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
    arguments = parser.parse_args()
    if arguments.run is None:
        print(_measure(arguments.images, arguments.side, arguments.repeat))
        return
    if arguments.pinned:
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, {0})
    print(json.dumps(_images_per_second(arguments.run, arguments.workers)))


if __name__ == "__main__":
    main()
