"""Compare the layouts of checkpoints: agreement of the answers, loading time and peak memory.

    python -m benchmarks.layouts            # SAM 3's own sizes: eight minutes, 8 GB of disk space
    python -m benchmarks.layouts --small    # a small network, to try out the benchmark itself

Agreement, the share of pixels that are the same as with the original file, is measured on the shapes network, saved in
each layout. Loading is measured on random weights, in separate processes. Prints a table; --output also writes it to a
file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import circumstances, in_megabytes, in_seconds
from benchmarks.timing import last_line_of
from sam3_engine import ConceptPrompt, GeometricPrompt, Options, PromptError, Segment, masks_of
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from testbed.layout_files import LAYOUTS, read_contents
from testbed.plugin import REPOSITORY
from testbed.random_weights import FULL_SIZE_FILE, full_size_checkpoint
from testbed.scenes import Scene, draw_scene

_SHAPES_NETWORK = REPOSITORY / "demo" / "sam3_shapes.pt"
_CACHE = FULL_SIZE_FILE.parent
_MEASURED = (
    "sam3",
    "sam3, safetensors",
    "sam3, safetensors, float16",
    "sam3.1",
    "sam3.1, converted to float16",
    "transformers",
    "transformers, float16",
    "transformers, sharded",
    "transformers detector",
    "transformers click head",
    "fine-tuned",
    "fine-tuned, training checkpoint",
)
_SCENES = 8
_KINDS = ("phrase", "example box", "point", "box")
_CPU = torch.device("cpu")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="measure loading on the shapes network")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of loading, for the median (default: 3)")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    _CACHE.mkdir(exist_ok=True)
    lines = []
    for line in _table(_SHAPES_NETWORK if arguments.small else full_size_checkpoint(), arguments.repeat):
        print(line, flush=True)
        lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(loaded: Path, repeat: int) -> Iterator[str]:
    yield from circumstances(_CPU)
    yield ""
    yield f"| file | {' | '.join(_KINDS)} | size | load | peak memory |"
    yield "|---" * (len(_KINDS) + 4) + "|"
    shapes, large = read_contents(_SHAPES_NETWORK), read_contents(loaded)
    expected = _answers(_SHAPES_NETWORK)
    for name in _MEASURED:
        layout = LAYOUTS[name]
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            agreement = _agreement(_answers(layout.save(Path(folder), shapes)), expected)
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            size, seconds, peak = _loading(layout.save(Path(folder), large), "plugin", repeat)
        cells = [name, *agreement, in_megabytes(size), in_seconds(seconds), in_megabytes(peak)]
        yield f"| {' | '.join(cells)} |"
    if loaded != _SHAPES_NETWORK:  # the package builds only SAM 3's own sizes
        size, seconds, peak = _loading(loaded, "sam3", 1)
        cells = ["sam3, loaded by the sam3 package", *[""] * len(_KINDS)]
        yield f"| {' | '.join([*cells, in_megabytes(size), in_seconds(seconds), in_megabytes(peak)])} |"


def _loading(path: Path, side: str, repeat: int) -> tuple[float, float, float]:
    """Return the bytes of a checkpoint's files, and the median seconds and peak memory of loading it."""
    files = list(path.parent.glob(f"{path.name.partition('.')[0]}*")) if path.suffix == ".json" else [path]
    found = [json.loads(last_line_of("benchmarks.load", side, path, "cpu")) for _ in range(repeat)]
    seconds, peak = (statistics.median(one[key] for one in found) for key in ("load", "peak"))
    return sum(file.stat().st_size for file in files), seconds, peak


def _answers(checkpoint: Path) -> dict[str, list[np.ndarray]]:
    """Return the masks of the shapes network for each kind of prompt that the file answers."""
    predictor = Predictor(load_model(checkpoint, _CPU))
    random = np.random.default_rng(20_000_000)
    masks: dict[str, list[np.ndarray]] = {kind: [] for kind in _KINDS}
    for scene in (draw_scene(random) for _ in range(_SCENES)):
        for kind, prompt in _prompts(scene).items():
            try:
                segments = predictor.predict(scene.image, prompt, Options(multimask=True))
            except PromptError:
                continue  # the file lacks the head that answers it
            masks[kind].append(_union(segments, scene.image.shape[:2]))
    return masks


def _prompts(scene: Scene) -> dict[str, ConceptPrompt | GeometricPrompt]:
    shape = scene.shapes[0].whole
    x, y = (shape.box[0] + shape.box[2]) / 2, (shape.box[1] + shape.box[3]) / 2
    prompts = (
        ConceptPrompt(("shape",)),
        ConceptPrompt(boxes=(shape.box,), box_labels=(1,)),
        GeometricPrompt(points=((x, y),), point_labels=(1,)),
        GeometricPrompt(boxes=(shape.box,)),
    )
    return dict(zip(_KINDS, prompts, strict=True))


def _union(segments: list[Segment], size: tuple[int, int]) -> np.ndarray:
    """Return which segments cover each pixel, as a bit each."""
    covered = np.zeros((*size, len(segments)), bool)
    for number, mask in enumerate(masks_of(segments)):
        covered[..., number] = mask
    return covered


def _agreement(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> list[str]:
    """Return the share of the masks' pixels that agree, for each kind of prompt."""
    return [_share(found[kind], expected[kind]) if found[kind] else "no" for kind in _KINDS]


def _share(found: list[np.ndarray], expected: list[np.ndarray]) -> str:
    same = [np.mean(a == b) if a.shape == b.shape else 0.0 for a, b in zip(found, expected, strict=True)]
    return "identical" if min(same) == 1 else f"{100 * np.mean(same):.2f} %"


if __name__ == "__main__":
    main()
