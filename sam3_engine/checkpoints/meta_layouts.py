"""The layouts of Meta's SAM 3 and SAM 3.1, and of checkpoints that Meta's trainer writes.

Names follow Meta's ``sam3`` package: the network's own, behind a prefix for each of the two models.

Importing this module imports torch.
"""

from __future__ import annotations

import re

from .layout import CLICK_HEAD, Head, Layout, Rule

_CLICK_HEAD = re.escape(CLICK_HEAD)
_META_PREFIXES = (
    ("detector.", "detector."),
    ("tracker.", "tracker."),
    ("sam3_model.", "detector."),  # older copies of SAM 3.1
    ("sam2_predictor.", "tracker."),
    (CLICK_HEAD, "tracker."),  # a network saved with its state_dict()
    ("", "detector."),  # Meta's trainer
)
_META_UNUSED = (
    r"detector\.backbone\.language_backbone\.encoder\.text_projection",
    r"detector\.geometry_encoder\.points_(direct|pool|pos_enc)_project\.(weight|bias)",
)
_META_DETECTOR = Head(
    mark=r"detector\.(transformer|geometry_encoder|dot_prod_scoring)\.",
    neck=r"detector\.backbone\.vision_backbone\.convs\..*",
)
_META_MASK_HEAD = r"detector\.segmentation_head\."
_META_RULES = (
    Rule(rf"{_CLICK_HEAD}(.*)", (r"tracker.\1",)),
    Rule(r"(.*)", (r"detector.\1",)),
)
SAM3 = Layout(
    version="SAM 3",
    mark=r"(detector\.|sam3_model\.)?backbone\.(vision_backbone|language_backbone)\.|(tracker|sam2_predictor)\.sam_",
    prefixes=_META_PREFIXES,
    detector=_META_DETECTOR,
    click_head=Head(mark=r"tracker\.sam_", neck=r"detector\.backbone\.vision_backbone\.sam2_convs\..*"),
    mask_head=_META_MASK_HEAD,
    rules=_META_RULES,
    unused=(
        *_META_UNUSED,
        r"detector\.backbone\.vision_backbone\.(sam2_)?convs\.3\..*",
        r"tracker\.(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)",
        r"tracker\.(transformer|maskmem_backbone|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\..*",
    ),
)
SAM3_1 = Layout(
    version="SAM 3.1 (multiplex)",
    mark=(
        r"(detector\.|sam3_model\.)?backbone\.vision_backbone\.interactive_convs\."
        r"|(tracker|sam2_predictor)\.model\.(interactive|interactivity)_"
    ),
    prefixes=_META_PREFIXES,
    detector=_META_DETECTOR,
    click_head=Head(
        mark=r"tracker\.model\.interactive_sam_", neck=r"detector\.backbone\.vision_backbone\.interactive_convs\..*"
    ),
    mask_head=_META_MASK_HEAD,
    rules=(
        Rule(rf"{_CLICK_HEAD}no_mem_embed", ("tracker.model.interactivity_no_mem_embed",)),
        Rule(rf"{_CLICK_HEAD}(.*)", (r"tracker.model.interactive_\1",)),
        Rule(
            r"backbone\.vision_backbone\.sam2_convs\.(.*)",
            (r"detector.backbone.vision_backbone.interactive_convs.\1",),
        ),
        *_META_RULES,
    ),
    unused=(
        *_META_UNUSED,
        r"detector\.backbone\.vision_backbone\.propagation_convs\..*",
        # the video tracker: everything but the heads for clicks
        r"tracker\.model\.(?!interactive_|interactivity_).*",
        r"tracker\.model\.interactive_(mask_downsample|obj_ptr_proj)\..*",
    ),
    settings={"iou_prediction_use_sigmoid": False, "dynamic_multimask_via_stability": False},
)
