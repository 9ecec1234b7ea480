"""Train the shapes network from scratch on synthetic scenes.

    python -m training demo/sam3_shapes.pt            # about two and a half hours on two CPU cores
    python -m training demo/sam3_shapes.pt --cuda

The state and a log are saved to .cache every few minutes; the same command resumes from there.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sam3_engine.architecture import Architecture
from sam3_engine.checkpoints.checkpoint import checkpoint_contents
from sam3_engine.contexts import importing_sam3
from sam3_engine.devices import choose_device
from sam3_engine.redirection import redirect_cuda

from .batches import Batch, Batches
from .dense import DenseHeads
from .detector import detector_losses, prepare
from .exemplars import ExemplarHead
from .losses import Losses
from .optimisation import Optimiser
from .outlines import outline_losses
from .starting_weights import initialise, used_tokens

with importing_sam3():
    from sam3_engine.network import Sam3Image, build_network

SHAPES = Architecture(
    resolution=336,
    patch_size=14,
    vit_pretrain_resolution=336,
    vit_width=128,
    vit_depth=4,
    vit_heads=4,
    vit_mlp_ratio=3.0,
    vit_window=24,
    vit_global_blocks=(0, 1, 2, 3),
    width=64,
    heads=4,
    ffn_width=128,
    encoder_layers=2,
    decoder_layers=4,
    geometry_layers=1,
    queries=25,
    pixel_decoder_stages=2,
    text_width=32,
    text_heads=2,
    text_layers=1,
    mask_decoder_heads=4,
    mask_decoder_ffn_width=128,
    mask_decoder_downsample=1,
    iou_head_width=64,
    fill_hole_area=0,
    memory_width=16,
    memory_layers=1,
    memory_fuser_layers=1,
)
AUXILIARY_HEADS_WEIGHT = 1.5  # of their losses, relative to those of the prompts
AVERAGING = 0.998  # the saved weights are an average over about the last 500 steps
SECONDS_PER_STEP = 1.4  # 6,600 steps took 164 minutes on two cores of an AMD EPYC; a step takes 6 % less since then
SECONDS_BETWEEN_SAVES = 300
SECONDS_BETWEEN_LINES = 60
STATE_FILE = Path(__file__).resolve().parent.parent / ".cache" / "training.pt"


def _field(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": f"{help_text} (default: {default})"})


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of a run."""

    seed: int = _field(1, "seed of the starting weights and the scenes")
    dense_steps: int = _field(1000, "steps at the start that train the encoders without prompts")
    dense_scenes: int = _field(8, "scenes per step without prompts")
    steps: int = _field(6600, "total number of steps")
    scenes: int = _field(4, "scenes per step with prompts")
    rate: float = _field(1.2e-3, "highest learning rate")


class Curriculum(torch.utils.data.Dataset[Batch]):
    """The batch of each step."""

    def __init__(self, plan: Plan, architecture: Architecture) -> None:
        self._dense_steps = plan.dense_steps
        self._dense = Batches(architecture, plan.seed, plan.dense_scenes, prompts=False)
        self._joint = Batches(architecture, plan.seed, plan.scenes, prompts=True)

    def __getitem__(self, step: int) -> Batch:
        return self._dense[step] if step < self._dense_steps else self._joint[step]


class Training:
    """A run that can be interrupted and resumed."""

    def __init__(self, plan: Plan, device: torch.device, architecture: Architecture) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.device, self.architecture = plan, device, architecture
        self.step, self.seconds = 0, 0.0
        self.network = build_network(architecture, device)
        initialise(self.network)
        self.auxiliary_heads = torch.nn.ModuleDict(
            {"dense": DenseHeads(architecture.width), "exemplars": ExemplarHead(architecture.width)}
        ).to(device)
        self.network.to(device)
        _freeze_unused(self.network)
        prepare(self.network)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
        self.optimiser = Optimiser(self.network, self.auxiliary_heads, plan.rate, plan.steps)

    def losses(self, batch: Batch) -> Losses:
        """Return the weighted losses of a batch."""
        with redirect_cuda(self.device):
            features = self.network.backbone.forward_image(batch.images.float() / 127.5 - 1)
            dense = self.auxiliary_heads["dense"](features, batch)
            exemplars = self.auxiliary_heads["exemplars"](self.network, features, batch)
            auxiliary = {
                **{f"dense {name}": loss for name, loss in dense.items()},
                **{f"exemplar {name}": loss for name, loss in exemplars.items()},
            }
            if not batch.detector_prompts:
                return auxiliary
            detector = detector_losses(self.network, features, batch)
            outline = outline_losses(self.network, features, batch)
        return {
            **{name: AUXILIARY_HEADS_WEIGHT * loss for name, loss in auxiliary.items()},
            **{f"detector {name}": loss for name, loss in detector.items()},
            **{f"outline {name}": loss for name, loss in outline.items()},
        }

    def run(self, state_file: Path) -> Iterator[str]:
        """Train to the end of the plan, saving to ``state_file``; yield a line of mean losses about once a minute."""
        numbers = range(self.step, self.plan.steps)
        curriculum = Curriculum(self.plan, self.architecture)
        batches = torch.utils.data.DataLoader(curriculum, batch_size=None, sampler=numbers, num_workers=1)
        sums: dict[str, float] = {}
        since_line = 0
        start = last_line = last_save = time.monotonic()
        before = self.seconds
        for batch in batches:
            losses = self.losses(_to(batch, self.device))
            norm = self.optimiser.step(torch.stack(list(losses.values())).sum())
            self.average.update_parameters(self.network)
            self.step += 1
            since_line += 1
            values = {name: loss.item() for name, loss in losses.items()}
            for name, value in {**values, "gradient": norm}.items():
                sums[name] = sums.get(name, 0.0) + value
            now = time.monotonic()
            self.seconds = before + now - start
            if now - last_line > SECONDS_BETWEEN_LINES or self.step in (self.plan.dense_steps, self.plan.steps):
                means = " ".join(f"{name} {total / since_line:.3f}" for name, total in sums.items())
                speed = (now - last_line) / since_line
                yield f"{self.seconds / 60:.0f} min, step {self.step}, {speed:.2f} s per step: {means}"
                sums, since_line, last_line = {}, 0, now
            if now - last_save > SECONDS_BETWEEN_SAVES:
                self.save(state_file)
                last_save = now
        self.save(state_file)

    def save(self, path: Path) -> None:
        """Save the state, for :meth:`load`."""
        unfinished = path.with_suffix(".unfinished")
        state = {
            **self._identity(),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "auxiliary_heads": self.auxiliary_heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Restore a state that :meth:`save` wrote with the same code.

        Raises:
            ValueError: the state comes from a run with another plan or architecture.
        """
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(
                    f"{path} is the state of a run with another {name}: {state[name]}. Delete it to start over."
                )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.auxiliary_heads.load_state_dict(state["auxiliary_heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _identity(self) -> dict[str, Any]:
        return {"plan": dataclasses.asdict(self.plan), "architecture": self.architecture.to_dict()}

    def write_checkpoint(self, path: Path) -> None:
        """Write the averaged network as a checkpoint in half precision; complex tables keep theirs."""
        contents = checkpoint_contents(self.average.module, self.architecture)
        contents["model"] = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).cpu()
            for name, tensor in contents["model"].items()
        }
        torch.save(contents, path)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; returning it to the system makes steps a seventh slower."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        most_mapped, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        mallopt(most_mapped, 0)
        mallopt(trim_threshold, 2**31 - 1)


def _freeze_unused(network: Sam3Image) -> None:
    """Freeze the video memory, which images do not use, and the embeddings of words that no phrase contains."""
    tracker = network.inst_interactive_predictor.model
    for part in (tracker.transformer, tracker.maskmem_backbone):
        part.requires_grad_(False)
    used = used_tokens(network)
    embedding = network.backbone.language_backbone.encoder.token_embedding.weight
    embedding.register_hook(lambda gradient: gradient * used.to(gradient.device))


def _to(batch: Any, device: torch.device) -> Any:
    """Move a batch, or a part of one, to a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, list | tuple):
        return type(batch)(_to(part, device) for part in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {field.name: _to(getattr(batch, field.name), device) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **parts)
    return batch


def _overview(training: Training, checkpoint: Path, state_file: Path) -> str:
    """Describe what the run is about to do, and how long it takes."""
    plan = training.plan
    minutes = SECONDS_PER_STEP * (plan.steps - training.step) / 60
    duration = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"
    start = f"from step {training.step:,}, saved in {state_file}" if training.step else "from scratch"
    return (
        f"Training {start}, to step {plan.steps:,}; the first {plan.dense_steps:,} steps are without prompts.\n"
        f"Time: about {duration} on two CPU cores; not measured on a GPU.\n"
        f"State: saved to {state_file} every {SECONDS_BETWEEN_SAVES // 60} minutes. Press Ctrl+C to stop; the same "
        "command resumes from there.\n"
        f"Log: {state_file.with_suffix('.log')}\n"
        f"Result: written to {checkpoint} at the end."
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="file to write at the end")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument(
        "--state", type=Path, default=STATE_FILE, help="file for the state of the run (default: %(default)s)"
    )
    for field in dataclasses.fields(Plan):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default, help=field.metadata["help"])
    arguments = parser.parse_args()
    if not arguments.checkpoint.parent.is_dir():
        parser.error(f"the folder {arguments.checkpoint.parent} for the checkpoint does not exist")
    plan = Plan(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Plan)})
    keep_freed_memory()
    training = Training(plan, choose_device(arguments.cuda), SHAPES)
    if arguments.state.exists():
        try:
            training.load(arguments.state)
        except ValueError as error:
            parser.error(str(error))
    print(_overview(training, arguments.checkpoint, arguments.state), flush=True)
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    with arguments.state.with_suffix(".log").open("a" if training.step else "w", encoding="utf-8") as log:
        for line in training.run(arguments.state):
            print(line, flush=True)
            print(line, file=log, flush=True)
    training.write_checkpoint(arguments.checkpoint)
    arguments.state.unlink()


if __name__ == "__main__":
    main()
