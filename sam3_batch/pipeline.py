"""Segment all images of a folder by one prompt, on this machine or on a Ray cluster, into a Parquet dataset.

    python -m sam3_batch photos results --input_text shoe --workers 2
    python -m sam3_batch s3://bucket/photos s3://bucket/results --input_text shoe --workers 1-64

The prompt and its parameters are the plugin's. ``results/instances`` is the dataset: a row for each image, with its
path inside the folder, its size, its status and its instances, their masks as COCO's run-length encoding. Started
again, it goes on with the images that have no row yet. With RAY_ADDRESS in the environment it runs on that cluster,
otherwise on a Ray of its own on this machine.

The way of the data: paths -> [tasks: read, decode] -> [actors, one model each: segment] -> [tasks: encode masks, write
pictures] -> this process, which alone writes to the dataset. Pictures are streamed; what grows with the folder is the
list of its paths.
"""

from __future__ import annotations

import argparse
import colorsys
import dataclasses
import functools
import io
import json
import logging
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet

from sam3_engine.images import ImageError, as_rgb8, pixels_of
from sam3_engine.prompts import Prompt
from sam3_engine.settings import Settings
from sam3_engine.weights import WeightsError, find_checkpoint

if TYPE_CHECKING:
    from sam3_engine.segments import Segment

REPOSITORY = Path(__file__).resolve().parent.parent

# what a worker chooses by its GPUs, and what the dataset has in any case
_NOT_OPTIONS = ("cuda", "instance_output")
_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"))

_PATHS_IN_A_TASK = 64  # at most; fewer where each worker would get too few tasks to share them evenly
_TASKS_FOR_A_WORKER = 8
_CPUS_OF_A_TASK = 0.5  # which waits for storage; of as much as a worker takes, Ray would make it a part of the worker
_LOST_BLOCKS = 10  # that may fail for other reasons than a killed worker before the run stops

_ROWS_IN_A_FILE = 10_000
_SECONDS_IN_A_FILE = 60.0  # how much a killed run may lose
_SECONDS_BETWEEN_REPORTS = (1.0, 60.0)  # at the start of a run, and in a long one

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_BACKEND_LOG_LEVEL": "fatal"}

ROWS = pa.schema(
    {
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "status": pa.string(),
        "error": pa.string(),
        "seconds": pa.float64(),
        "instances": pa.list_(
            pa.struct(
                {
                    "label": pa.string(),
                    "score": pa.float64(),
                    "box": pa.list_(pa.int32()),
                    "mask": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}),
                }
            )
        ),
    }
)
_SEGMENTED = pa.schema(
    {
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "error": pa.string(),
        "seconds": pa.float64(),
        "instances": pa.list_(
            pa.struct(
                {"label": pa.string(), "score": pa.float64(), "box": pa.list_(pa.int32()), "bits": pa.large_binary()}
            )
        ),
    }
)
_PIXELS = pa.field("pixels", pa.large_binary())
_DECODED = pa.schema([*(_SEGMENTED.field(name) for name in ("path", "width", "height", "error")), _PIXELS])


# --- folders


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, or wherever pyarrow or fsspec can read and write.

    Attributes:
        uri: its path, or such as ``s3://bucket/photos``.
    """

    uri: str

    @functools.cached_property
    def _place(self) -> tuple[pyarrow.fs.FileSystem, str]:
        if "://" not in self.uri:
            return pyarrow.fs.LocalFileSystem(), Path(self.uri).expanduser().resolve().as_posix()
        try:
            return pyarrow.fs.FileSystem.from_uri(self.uri)
        except pa.ArrowInvalid:  # not one of pyarrow's own
            import fsspec

            system, root = fsspec.core.url_to_fs(self.uri)
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(system)), root

    def __reduce__(self) -> Any:
        return Folder, (self.uri,)  # not the connection

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def files(self) -> list[str]:
        """The paths inside the folder of all files in it and its sub-folders, sorted.

        Raises:
            OSError: there is no such folder, or it cannot be read.
        """
        system, root = self._place
        found = system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
        return sorted(info.path[len(root) :].lstrip("/") for info in found if info.is_file)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder in it."""
        system, root = self._place
        return system.get_file_info(f"{root}/{path}").type != pyarrow.fs.FileType.NotFound

    def holds(self, other: Folder) -> bool:
        """Whether the other folder is this one, or in it."""
        (system, root), (others, place) = self._place, other._place
        return type(system) is type(others) and f"{place}/".startswith(f"{root.rstrip('/')}/")

    def read(self, path: str) -> bytes:
        """The content of a file."""
        system, root = self._place
        with system.open_input_stream(f"{root}/{path}") as stream:
            return stream.read()

    def write(self, path: str, content: bytes) -> None:
        """Write a file as a whole or not at all, and the folders that it is in."""
        system, root = self._place
        folder, _, name = f"{root}/{path}".rpartition("/")
        system.create_dir(folder, recursive=True)
        unfinished = f"{folder}/_{uuid.uuid4().hex}"  # names that begin so are no part of a dataset
        with system.open_output_stream(unfinished) as stream:
            stream.write(content)
        system.move(unfinished, f"{folder}/{name}")

    def dataset(self) -> pyarrow.dataset.Dataset:
        """The Parquet files in it, as one."""
        system, root = self._place
        return pyarrow.dataset.dataset(root, ROWS, format="parquet", filesystem=system)


# --- what tasks and actors do; tables come in and go out, as many rows as they have paths


def decode(paths: pa.Table, folder: Folder) -> pa.Table:
    """Read and decode images: ``path`` becomes size and 8-bit RGB ``pixels``, or an ``error``."""
    return pa.Table.from_pylist([_decoded(path, folder) for path in paths["path"].to_pylist()], _DECODED)


def _decoded(path: str, folder: Folder) -> dict[str, Any]:
    try:
        with PIL.Image.open(io.BytesIO(folder.read(path))) as image:
            rgb = as_rgb8(pixels_of(PIL.ImageOps.exif_transpose(image)))
    except PIL.UnidentifiedImageError:
        return {"path": path, "error": "this is no image of a known kind, or only the beginning of one"}
    except Exception as error:  # whatever a decoder or a file system raises
        return {"path": path, "error": _in_words(error)}
    return {"path": path, "width": rgb.shape[1], "height": rgb.shape[0], "pixels": rgb.tobytes()}


def _in_words(error: BaseException) -> str:
    """An error on one line: as it says if that is made for users, else with its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ImageError) else f"{type(error).__name__}: {text}"


class Segmenter:
    """A model and a prompt, in an actor of its own.

    Args:
        settings: the plugin's parameters.
        keep_pixels: whether they are needed further down.
    """

    def __init__(self, settings: Settings, keep_pixels: bool) -> None:
        from sam3_engine.model import shared_model
        from sam3_engine.predictor import Predictor
        from sam3_engine.runtime import choose_device

        checkpoint = find_checkpoint(settings.model_weight_file, REPOSITORY / "weights")
        self._predictor = Predictor(shared_model(checkpoint, choose_device(settings.cuda)), settings.model_input_size)
        self._settings, self._keep_pixels = settings, keep_pixels
        self._prompt = _prompt_of(settings)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Segment decoded images: each gets its ``instances``, with the pixels of their masks in their boxes."""
        pixels = images["pixels"]
        rows = images.drop_columns(["pixels"]).to_pylist()
        segmented = pa.Table.from_pylist(list(map(self._segmented, rows, pixels)), _SEGMENTED)
        return segmented.append_column(_PIXELS, pixels) if self._keep_pixels else segmented

    def _segmented(self, row: dict[str, Any], pixels: pa.LargeBinaryScalar) -> dict[str, Any]:
        from sam3_engine.model import CheckpointError

        if row["error"] is not None:
            return row
        start = time.perf_counter()
        try:
            instances = self._instances(_as_array(pixels, row))
        except CheckpointError:
            raise  # there is no use in going on
        except Exception as error:  # a prompt that is outside this image, memory that runs out, ...
            return {**row, "error": _in_words(error)}
        return {**row, "seconds": time.perf_counter() - start, "instances": instances}

    def _instances(self, image: np.ndarray) -> list[dict[str, Any]]:
        from sam3_engine.segments import masks_of

        segments = self.ask(image)
        return [
            _instance(segment.label, segment.score, mask)
            for segment, mask in zip(segments, masks_of(segments), strict=True)
        ]

    def ask(self, image: np.ndarray) -> list[Segment]:
        """What the network finds in an image (H, W, 3) uint8 RGB."""
        settings = self._settings
        prompt = self._prompt.clipped(image.shape[1], image.shape[0])
        return self._predictor.segment(
            self._predictor.encode_image(image, settings.input_size_percent),
            prompt,
            confidence_threshold=settings.confidence_threshold,
            iou_threshold=settings.iou_threshold,
            multimask=settings.multimask_output,
        )


def _open_model(settings: Settings) -> None:
    Segmenter(settings, keep_pixels=False)


def _prompt_of(settings: Settings) -> Prompt:
    prompt = settings.prompt()
    if prompt is None:
        raise ValueError("nothing to segment: give --input_text, --input_box or --input_point")
    return prompt


def _instance(label: str, score: float, mask: np.ndarray) -> dict[str, Any]:
    from sam3_engine.segments import bounding_box

    left, top, right, bottom = box = [int(side) for side in bounding_box(mask)]
    bits = np.packbits(mask[top:bottom, left:right])  # a sixteenth of the mask, or less: masks of a crowd are many
    return {"label": label, "score": score, "box": box, "bits": bits.tobytes()}


def record(segmented: pa.Table, output: Folder, *, label_maps: bool, overlays: bool) -> pa.Table:
    """Make rows of the dataset, and write the pictures that are asked for."""
    recorded = []
    for index, row in enumerate(segmented.select(_SEGMENTED.names).to_pylist()):
        if label_maps and row["error"] is None:
            numbers = label_map_of(row["instances"], row["height"], row["width"])
            output.write(f"label_maps/{row['path']}.png", _as_png(numbers))
        if overlays and row["error"] is None:
            picture = _as_array(segmented["pixels"][index], row)
            output.write(f"overlays/{row['path']}.png", _as_png(overlay_of(row["instances"], picture)))
        recorded.append(_recorded(row))
    return pa.Table.from_pylist(recorded, ROWS)


def _recorded(row: dict[str, Any]) -> dict[str, Any]:
    if row["error"] is not None:
        return {**row, "status": "error"}
    size, found = (row["height"], row["width"]), row["instances"]
    instances = [
        {**{name: one[name] for name in ("label", "score", "box")}, "mask": coco_rle(one, *size)} for one in found
    ]
    return {**row, "status": "ok", "instances": instances}


def _as_array(pixels: pa.LargeBinaryScalar, row: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8 RGB, a view."""
    return np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], 3)


def _mask_in_box(instance: Mapping[str, Any]) -> np.ndarray:
    """The mask (h, w) bool of an instance with bits, inside its box."""
    left, top, right, bottom = instance["box"]
    bits = np.unpackbits(np.frombuffer(instance["bits"], np.uint8), count=(bottom - top) * (right - left))
    return bits.reshape(bottom - top, right - left).view(np.bool_)


def coco_rle(instance: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """COCO's compressed run-length encoding of an instance with bits: ``size`` and ``counts``, as pycocotools reads it.

    Source: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h
    """
    from pycocotools import mask as coco

    left, top, right, bottom = instance["box"]
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top:bottom, left:right] = _mask_in_box(instance)
    encoded = coco.encode(whole)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def label_map_of(instances: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """(height, width) map: k for the k-th instance, 0 for none; where they overlap the one of higher score wins.

    It is uint8, or uint16 if there are more than 255.
    """
    numbers = np.zeros((height, width), np.uint8 if len(instances) <= 255 else np.uint16)
    for index in sorted(range(len(instances)), key=lambda index: -instances[index]["score"])[::-1]:
        left, top, right, bottom = instances[index]["box"]
        numbers[top:bottom, left:right][_mask_in_box(instances[index])] = index + 1
    return numbers


def overlay_of(instances: Sequence[Mapping[str, Any]], picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB with every instance tinted in a colour of its own."""
    tinted = picture.copy()
    for index, instance in enumerate(instances):
        hue = (0.55 + 0.618034 * index) % 1  # the golden angle: neighbours differ most
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, 0.9, 1.0))
        left, top, right, bottom = instance["box"]
        window, mask = tinted[top:bottom, left:right], _mask_in_box(instance)
        window[mask] = np.rint(0.45 * window[mask] + 0.55 * colour).astype(np.uint8)
    return tinted


def _as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


# --- the dataset


class Rows:
    """The dataset in an output folder. One process writes to it, in files that appear whole or not at all.

    Attributes:
        count: rows added.
        failures, instances: how many there are of these among them.
        left: images that have no row, after a run.
    """

    def __init__(self, output: Folder) -> None:
        self._folder = output / "instances"
        self._waiting: list[pa.Table] = []
        self._last_file = time.monotonic()
        self.count = self.failures = self.instances = self.left = 0

    def paths(self) -> set[str]:
        """The paths of all images that have a row."""
        if not self._folder.exists(""):
            return set()
        return set(self._folder.dataset().to_table(columns=["path"])["path"].to_pylist())

    def add(self, rows: pa.Table) -> None:
        """Add rows, which are in a file before long."""
        self._waiting.append(rows)
        self.count += len(rows)
        self.failures += sum(status == "error" for status in rows["status"].to_pylist())
        self.instances += sum(len(found) for found in rows["instances"] if found.is_valid)
        due = time.monotonic() - self._last_file > _SECONDS_IN_A_FILE
        if due or sum(map(len, self._waiting)) >= _ROWS_IN_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is not in a file yet."""
        if self._waiting:
            file = io.BytesIO()
            pyarrow.parquet.write_table(pa.concat_tables(self._waiting), file, compression="zstd")
            self._folder.write(f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex}.parquet", file.getvalue())
        self._waiting, self._last_file = [], time.monotonic()


def check_same_run(output: Folder, wanted: Mapping[str, Any]) -> None:
    """Note in the output folder what its dataset is of, or compare if that is noted already.

    Raises:
        SystemExit: it is of something else.
    """
    if not output.exists("run.json"):
        output.write("run.json", json.dumps(wanted, indent=2).encode())
        return
    noted = json.loads(output.read("run.json"))
    others = [f"{name} = {noted.get(name)!r}" for name in wanted if noted.get(name) != wanted[name]]
    if others:
        raise SystemExit(f"{output.uri} has the rows of another run, of {', '.join(others)}: name another output.")


# --- the run


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
) -> Rows:
    """Segment what has no row yet. Ray has to be running.

    Args:
        source: of the images, in it and its sub-folders.
        output: of the dataset ``instances``, and of ``label_maps`` and ``overlays`` if they are asked for.
        settings: the plugin's parameters, with a prompt.
        workers: how many at least and at most.
        cpus_per_worker, gpus_per_worker: that each takes.
        label_maps, overlays: whether to write a PNG of this kind for each image.

    Returns:
        The rows that were added.

    Raises:
        OSError: a folder cannot be read or written.
        ray.exceptions.RayError: no worker can be had, or too many failed again and again.
    """
    import ray.data

    rows = Rows(output)
    files = source.files()
    images = [path for path in files if Path(path).suffix.lower() in _SUFFIXES]
    done = rows.paths()
    left = [path for path in images if path not in done]
    _say(f"{len(images)} images, of which {len(images) - len(left)} have a row; {len(files) - len(images)} other files")
    if not left:
        return rows

    settings = dataclasses.replace(settings, cuda=gpus_per_worker > 0)
    # once by itself: in a worker that cannot be had, Ray would try again and again before it says why
    opening = ray.remote(_open_model).options(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, max_retries=0)
    ray.get(opening.remote(settings))

    in_a_task = max(1, min(_PATHS_IN_A_TASK, len(left) // (_TASKS_FOR_A_WORKER * workers[1])))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = _LOST_BLOCKS
    dataset = (
        ray.data.from_arrow([pa.table({"path": left[at : at + in_a_task]}) for at in range(0, len(left), in_a_task)])
        .map_batches(
            functools.partial(decode, folder=source), batch_format="pyarrow", batch_size=8, num_cpus=_CPUS_OF_A_TASK
        )
        .map_batches(
            Segmenter,
            batch_format="pyarrow",
            batch_size=None,
            fn_constructor_args=(settings, overlays),
            compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
        )
        .map_batches(
            functools.partial(record, output=output, label_maps=label_maps, overlays=overlays),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_CPUS_OF_A_TASK,
        )
    )
    progress = _Progress(len(left))
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows.add(table)
            progress.report(rows)
    finally:
        rows.flush()
        rows.left = len(left) - rows.count
    return rows


class _Progress:
    """Lines on stderr about a run of some images."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._last = time.monotonic()

    def report(self, rows: Rows) -> None:
        """Say how far it is, unless that was said a moment ago."""
        now = time.monotonic()
        seconds = now - self._start
        shortest, longest = _SECONDS_BETWEEN_REPORTS
        if now - self._last < min(max(shortest, seconds / 20), longest):
            return
        self._last = now
        left = _duration((self._total - rows.count) * seconds / rows.count)
        _say(f"{rows.count} of {self._total} images, {in_figures(rows, seconds)}, {left} left")


def in_figures(rows: Rows, seconds: float) -> str:
    """What a run has found, and how fast."""
    return f"{rows.instances} instances, {rows.failures} failures, {rows.count / seconds:.1f} images per second"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- the command line


def _bounds(text: str) -> tuple[int, int]:
    written = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    bounds = (int(written[1]), int(written[2] or written[1])) if written else (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: expected such as 4, or 1-8 for at least 1 and at most 8")
    return bounds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sam3_batch", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("input", help="folder of the images, or a URI such as s3://bucket/photos")
    parser.add_argument("output", help="folder or URI for the results")
    plugins = parser.add_argument_group("the plugin's parameters")
    for field in dataclasses.fields(Settings):
        if field.name not in _NOT_OPTIONS:
            plugins.add_argument(f"--{field.name}", metavar="VALUE", default=argparse.SUPPRESS)
    parser.add_argument("--workers", type=_bounds, default=(1, 1), metavar="N|N-M", help="models, each in a worker")
    parser.add_argument("--gpus_per_worker", type=float, metavar="N", help="default: 1 if Ray has GPUs, else 0")
    parser.add_argument("--cpus_per_worker", type=float, metavar="N", help="default: 1, or without GPUs a fair share")
    parser.add_argument("--label_maps", action="store_true", help="a PNG for each image: k where its k-th instance is")
    parser.add_argument("--overlays", action="store_true", help="a PNG for each image, its instances tinted")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> Settings:
    typed = {name: value for name, value in vars(arguments).items() if name in Settings().to_strings()}
    settings = Settings().updated(typed)
    _prompt_of(settings)
    return settings


def start_ray(cpus: float = 0) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start a Ray on this machine.

    Args:
        cpus: that workers are going to take. A Ray of our own is told that there are so many, if there are fewer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {}
    if not os.environ.get("RAY_ADDRESS"):
        # and one more, or workers that take all leave nothing for those who read and write
        cpus = 1 + max(math.ceil(cpus), os.cpu_count() or 1)
        options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    ray.init(
        **options,
        runtime_env={"py_modules": [str(REPOSITORY / name) for name in ("sam3_engine", "sam3_batch")]},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )


def main() -> None:
    """Segment as the command line says."""
    arguments = _arguments()
    source, output = Folder(arguments.input), Folder(arguments.output)
    try:
        settings = _settings(arguments)
        if not source.exists(""):
            raise FileNotFoundError(f"{arguments.input}: there is no such folder")
        if source.holds(output):
            raise ValueError(
                f"{arguments.output} is in {arguments.input}, whose images would become more: name another"
            )
        if not os.environ.get("RAY_ADDRESS"):
            find_checkpoint(settings.model_weight_file, REPOSITORY / "weights")  # downloads it once, not in each worker
        check_same_run(output, {"input": arguments.input, **_what_decides(settings)})
    except (OSError, ValueError, WeightsError) as error:
        raise SystemExit(str(error)) from error
    start_ray(arguments.workers[1] * (arguments.cpus_per_worker or 1))
    import ray

    start = time.monotonic()
    try:
        rows = segment_folder(
            source,
            output,
            settings,
            workers=arguments.workers,
            **_resources(arguments),
            label_maps=arguments.label_maps,
            overlays=arguments.overlays,
        )
    except KeyboardInterrupt:
        raise SystemExit("Stopped. What is done is kept: start again to go on.") from None
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or str(error).strip().splitlines()[-1]
        raise SystemExit(f"{reason}\nWhat is done is kept: start again to go on.") from error
    seconds = time.monotonic() - start
    print(f"{rows.count} images, {in_figures(rows, seconds)}, {_duration(seconds)}")
    if rows.left:
        raise SystemExit(f"{rows.left} images have no row: see above why, and start again to try them once more.")


def _resources(arguments: argparse.Namespace) -> dict[str, float]:
    """What each worker takes."""
    import ray

    gpus, cpus = arguments.gpus_per_worker, arguments.cpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    if cpus is None:
        alone = not gpus and not os.environ.get("RAY_ADDRESS")
        cpus = max(1, (os.cpu_count() or 1) // arguments.workers[1]) if alone else 1
    return {"cpus_per_worker": cpus, "gpus_per_worker": gpus}


def _what_decides(settings: Settings) -> dict[str, str]:
    """Those of the parameters that change what is found."""
    return {name: value for name, value in settings.to_strings().items() if name not in _NOT_OPTIONS}
