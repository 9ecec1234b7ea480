"""The command line: options, checks, exit messages."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import time

from sam3_engine import WeightsError
from sam3_engine.errors import message_of
from sam3_engine.settings import Settings

from .coco import ANNOTATIONS, write_annotations
from .dataset import check_same_run, dataset_folder
from .folders import Folder
from .pipeline import segment_folder, start_ray
from .progress import Progress, format_duration, print_message
from .workers import choose_prompt, find_weights

# Workers choose the device from their GPUs, and the dataset always holds every instance.
_PARAMETERS_WITHOUT_OPTION = ("cuda", "instance_output")
_PARAMETERS_WITHOUT_EFFECT = (*_PARAMETERS_WITHOUT_OPTION, "embedding_cache_folder")  # on the dataset


def main() -> None:
    """Run the command.

    Raises:
        SystemExit: the command is wrong, or the run is stopped, fails, or leaves images without a row.
    """
    arguments = _parse_arguments()
    source, output = Folder(arguments.input), Folder(arguments.output)
    try:
        settings = _read_settings(arguments)
        _check_folders(source, output)
        if not os.environ.get("RAY_ADDRESS"):
            find_weights(settings)  # download them here, not in every worker at once
        parameters = {"input": arguments.input, **_recorded_parameters(settings)}
        check_same_run(output, parameters, defaults=_recorded_parameters(Settings()))
    except (OSError, ValueError, WeightsError) as error:
        raise SystemExit(message_of(error)) from error
    start_ray(arguments.workers[1] * (arguments.cpus_per_worker or 1))
    _run(arguments, source, output, settings)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sam3_batch",
        description="Segment all images of a folder with one prompt. Run the same command again to continue a run.",
        allow_abbrev=False,
    )
    parser.add_argument("input", help="folder of images, or a URI such as s3://bucket/photos")
    parser.add_argument("output", help="folder or URI for the results")
    parameters = parser.add_argument_group("plugin parameters", "the parameters of the Ikomia plugin; see README.md")
    for field in dataclasses.fields(Settings):
        if field.name not in _PARAMETERS_WITHOUT_OPTION:
            parameters.add_argument(f"--{field.name}", metavar="VALUE", default=argparse.SUPPRESS)
    parser.add_argument(
        "--workers",
        type=parse_worker_range,
        default=(1, 1),
        metavar="N|N-M",
        help="number of workers, each with its own model; N-M: at least N and at most M (default: 1)",
    )
    parser.add_argument(
        "--gpus_per_worker",
        type=float,
        metavar="N",
        help="GPUs per worker; 0.5 puts two workers on one GPU (default: 1 if Ray has GPUs, else 0)",
    )
    parser.add_argument(
        "--cpus_per_worker",
        type=float,
        metavar="N",
        help="CPUs per worker (default: 1; on one machine without GPUs, its cores divided among the workers)",
    )
    parser.add_argument(
        "--label_maps",
        action="store_true",
        help="write a PNG label map per image, value k for the k-th instance or, with --mask_output classes, phrase",
    )
    parser.add_argument("--overlays", action="store_true", help="write a PNG per image with its instances tinted")
    parser.add_argument(
        "--coco", action="store_true", help=f"write {ANNOTATIONS} in COCO's format, with all images of the dataset"
    )
    return parser.parse_args()


def parse_worker_range(text: str) -> tuple[int, int]:
    """Parse a number of workers, such as ``4``, or a range, such as ``1-8``.

    Returns:
        The smallest and the largest number.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    smallest, largest = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= smallest <= largest:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number such as 4, or a range such as 1-8")
    return smallest, largest


def _read_settings(arguments: argparse.Namespace) -> Settings:
    names = Settings().to_strings()
    settings = Settings().updated({name: value for name, value in vars(arguments).items() if name in names})
    choose_prompt(settings)
    _ = settings.options  # raises an error if they do not fit together
    return settings


def _check_folders(source: Folder, output: Folder) -> None:
    if not source.exists():
        raise FileNotFoundError(f"{source.uri}: no such folder")
    if source.contains(output):
        raise ValueError(
            f"{output.uri} is inside {source.uri}, so a second run would segment its own results: "
            "choose an output folder outside the image folder"
        )


def _recorded_parameters(settings: Settings) -> dict[str, str]:
    """Return the parameters that change the results."""
    strings = settings.to_strings()
    return {name: value for name, value in strings.items() if name not in _PARAMETERS_WITHOUT_EFFECT}


def _run(arguments: argparse.Namespace, source: Folder, output: Folder, settings: Settings) -> None:
    """Segment the folder and print a summary; turn failures into exit messages."""
    import ray

    start = time.monotonic()
    try:
        progress = _segment(arguments, source, output, settings)
    except KeyboardInterrupt:
        raise SystemExit(f"Stopped. {_how_to_continue(output)}") from None
    except ray.exceptions.RayError as error:
        reason = getattr(error, "cause", None) or str(error).strip().splitlines()[-1]
        raise SystemExit(f"{reason}\n{_how_to_continue(output)}") from error
    except OSError as error:
        raise SystemExit(f"{message_of(error)}\n{_how_to_continue(output)}") from error
    seconds = time.monotonic() - start
    print(f"{progress.images} images, {progress.describe(seconds)}, {format_duration(seconds)}")
    if arguments.coco:
        print(f"Annotations: {(output / ANNOTATIONS).uri}")
    print(f"Results: {dataset_folder(output).uri}")
    if progress.remaining:
        raise SystemExit(
            f"{progress.remaining} images are not in the dataset: the messages above say why. "
            "Run the same command again to retry them."
        )


def _segment(arguments: argparse.Namespace, source: Folder, output: Folder, settings: Settings) -> Progress:
    """Segment the folder, then write the annotations if requested, also if the run is stopped or fails."""
    try:
        return segment_folder(
            source,
            output,
            settings,
            workers=arguments.workers,
            **_worker_resources(arguments),
            label_maps=arguments.label_maps,
            overlays=arguments.overlays,
        )
    finally:
        if arguments.coco:
            print_message(f"Writing {ANNOTATIONS}")
            write_annotations(output, choose_prompt(settings).prompt.names)


def _how_to_continue(output: Folder) -> str:
    return f"The results so far are in {dataset_folder(output).uri}. Run the same command again to continue."


def _worker_resources(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the CPUs and GPUs of each worker."""
    import ray

    gpus, cpus = arguments.gpus_per_worker, arguments.cpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    if cpus is None:
        one_machine = not gpus and not os.environ.get("RAY_ADDRESS")
        cpus = max(1, (os.cpu_count() or 1) // arguments.workers[1]) if one_machine else 1
    return {"cpus_per_worker": cpus, "gpus_per_worker": gpus}
