"""The losses of the detector: every instance of a phrase, or of what exemplar boxes show, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from sam3_engine.contexts import importing_sam3
from sam3_engine.model import Sam3Image

from .batches import Batch
from .exemplars import exemplar_boxes
from .losses import Losses, cheapest_pairs, mask_losses

with importing_sam3():
    from sam3.model.data_misc import FindStage

WEIGHTS = {"score": 1.0, "l1": 5.0, "giou": 2.0, "mask": 4.0, "dice": 2.0, "presence": 1.0}
AUXILIARY_WEIGHT = 0.2  # of each decoder layer before the last
ONE_TO_MANY_WEIGHT = 0.7
MATCHES_OF_ONE_TO_MANY = 4
ABSENT_SCORE_WEIGHT = 0.3  # the presence token already learns that the phrase names nothing


def prepare(network: Sam3Image) -> None:
    """Make a network for prediction return what :func:`detector_losses` needs, in place."""
    network.use_act_checkpoint_seg_head = (
        False  # saves memory, which is not scarce here, but costs a second forward pass
    )
    network.segmentation_head.act_ckpt = False
    network.o2m_mask_predict = False
    network.back_convert = lambda targets: targets
    network._compute_matching = lambda outputs, targets: None  # the package's needs its training code; see below


def detector_losses(network: Sam3Image, features: Mapping[str, Any], batch: Batch) -> Losses:
    """Answer all prompts of a batch with the detector, and return the losses.

    Queries come in two halves. In the one-to-one half, which makes the predictions, each answer matches one query. In
    the one-to-many half, each answer teaches several queries per step.

    Args:
        network: prepared, in evaluation mode.
        features: of the batch's images, from the image encoder.
        batch: with prompts.
    """
    prompts = batch.detector_prompts
    device = batch.images.device
    text = network.backbone.forward_text([prompt.phrase for prompt in prompts], device=device)
    find = FindStage(
        img_ids=torch.tensor([prompt.scene for prompt in prompts], device=device),
        text_ids=torch.arange(len(prompts), device=device),
        **dict.fromkeys(["input_boxes", "input_boxes_mask", "input_boxes_label", "input_points", "input_points_mask"]),
    )
    network.training = True  # turns on the second half of the queries; submodules stay in evaluation mode
    try:
        outputs = network.forward_grounding(
            backbone_out={**features, **text},
            find_input=find,
            find_target=None,
            geometric_prompt=exemplar_boxes(
                [prompt.boxes for prompt in prompts], [prompt.labels for prompt in prompts]
            ),
        )
    finally:
        network.training = False

    losses = _instance_losses(outputs, batch)
    losses["one to many"] = ONE_TO_MANY_WEIGHT * _total(_instance_losses(outputs, batch, one_to_many=True))
    losses["earlier layers"] = torch.zeros((), device=device)
    for layer in outputs["aux_outputs"]:
        one_to_one, one_to_many = (_total(_instance_losses(layer, batch, one_to_many=many)) for many in (False, True))
        losses["earlier layers"] += AUXILIARY_WEIGHT * (one_to_one + ONE_TO_MANY_WEIGHT * one_to_many)
    losses["semantic"] = _semantic_loss(outputs["semantic_seg"][:, 0].float(), batch)
    return losses


def _corners(boxes: torch.Tensor) -> torch.Tensor:
    """Convert boxes (N, 4) from center, width and height to x1, y1, x2, y2."""
    return box_convert(boxes, "cxcywh", "xyxy")


def _total(losses: Losses) -> torch.Tensor:
    return torch.stack(list(losses.values())).sum()


def _instance_losses(outputs: Mapping[str, torch.Tensor], batch: Batch, *, one_to_many: bool = False) -> Losses:
    """Return the losses of one decoder layer; only one-to-one queries of the last layer have masks."""
    suffix = "_o2m" if one_to_many else ""
    logits, boxes = outputs["pred_logits" + suffix][..., 0].float(), outputs["pred_boxes" + suffix].float()
    prompt_numbers, queries, answers = _match(logits, boxes, batch, MATCHES_OF_ONE_TO_MANY if one_to_many else 1)
    present = torch.tensor([float(bool(prompt.answers)) for prompt in batch.detector_prompts], device=logits.device)

    matched = torch.zeros_like(logits)
    matched[prompt_numbers, queries] = 1
    weights = ABSENT_SCORE_WEIGHT + (1 - ABSENT_SCORE_WEIGHT) * present
    # where two queries claim the same answer with a score of about 0.5, the focal loss would hardly separate them
    of_scores = binary_cross_entropy_with_logits(logits, matched, reduction="none")
    losses = {"score": (of_scores * weights[:, None]).sum() / max(1, len(queries))}
    if not one_to_many:
        presence = outputs["presence_logit_dec"][..., 0].float()
        losses["presence"] = binary_cross_entropy_with_logits(presence, present)
    if len(queries):
        found, wanted = boxes[prompt_numbers, queries], batch.boxes[answers]
        losses["l1"] = (found - wanted).abs().sum(dim=1).mean()
        losses["giou"] = generalized_box_iou_loss(_corners(found), _corners(wanted), reduction="mean")
        if "pred_masks" in outputs and not one_to_many:
            of_matched = outputs["pred_masks"][prompt_numbers, queries].float()
            cross_entropy, dice = mask_losses(of_matched, batch.masks[answers])
            losses["mask"], losses["dice"] = cross_entropy.mean(), dice.mean()
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}


@torch.no_grad()
def _match(
    logits: torch.Tensor, boxes: torch.Tensor, batch: Batch, most_matches: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Match queries to answers by score and box.

    Args:
        logits: (prompts, queries).
        boxes: (prompts, queries, 4) center, width and height in 0..1.
        batch: with the answers.
        most_matches: how many queries match an answer, if there are enough.

    Returns:
        For each match, the indices of its prompt, its query and its region.
    """
    matches: list[list[torch.Tensor]] = [[torch.zeros(0, dtype=torch.long, device=logits.device)] for _ in range(3)]
    for number, prompt in enumerate(batch.detector_prompts):
        if not prompt.answers:
            continue
        regions = torch.tensor(prompt.answers, device=logits.device)
        regions = regions.repeat(min(most_matches, logits.shape[1] // len(regions)))
        wanted = batch.boxes[regions]
        overlap = generalized_box_iou(_corners(boxes[number]), _corners(wanted))
        score = logits[number].sigmoid()[:, None]
        queries, chosen = cheapest_pairs(5 * torch.cdist(boxes[number], wanted, p=1) - 2 * overlap - 2 * score)
        for column, values in zip(matches, (torch.full_like(queries, number), queries, regions[chosen]), strict=True):
            column.append(values)
    prompt_numbers, queries, answers = (torch.cat(column) for column in matches)
    return prompt_numbers, queries, answers


def _semantic_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the loss of the semantic map, which does not separate instances; it gives every pixel a gradient."""
    maps = torch.stack(
        [
            batch.masks[prompt.answers].amax(dim=0) if prompt.answers else torch.zeros_like(logits[0])
            for prompt in batch.detector_prompts
        ]
    )
    cross_entropy, dice = mask_losses(logits, maps)
    present = torch.tensor([bool(prompt.answers) for prompt in batch.detector_prompts], device=logits.device)
    return cross_entropy.mean() + 0.5 * (dice * present).mean()
