"""Build a SAM 3 network of any size from the sam3 package's classes.

Importing this module imports sam3: do so inside :func:`~.contexts.importing_sam3`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

# otherwise, a prediction imports this and skimage's label (see regions.py), with side effects on logging and warnings
import sam3.perflib.connected_components  # noqa: F401
import torch
from sam3.model.decoder import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerDecoderLayerv2,
    TransformerEncoderCrossAttention,
)
from sam3.model.encoder import TransformerEncoderFusion, TransformerEncoderLayer
from sam3.model.geometry_encoders import SequenceGeometryEncoder
from sam3.model.maskformer_segmentation import PixelDecoder, UniversalSegmentationHead
from sam3.model.memory import CXBlock, SimpleFuser, SimpleMaskDownSampler, SimpleMaskEncoder
from sam3.model.model_misc import MLP, DotProductScoring, MultiheadAttentionWrapper, TransformerWrapper
from sam3.model.necks import Sam3DualViTDetNeck
from sam3.model.position_encoding import PositionEmbeddingSine
from sam3.model.sam1_task_predictor import SAM3InteractiveImagePredictor
from sam3.model.sam3_image import Sam3Image
from sam3.model.sam3_tracking_predictor import Sam3TrackerPredictor
from sam3.model.text_encoder_ve import VETextEncoder
from sam3.model.tokenizer_ve import SimpleTokenizer
from sam3.model.vitdet import ViT
from sam3.model.vl_combiner import SAM3VLBackbone
from sam3.sam.mask_decoder import MLP as MaskDecoderMLP  # noqa: N811 - a class
from sam3.sam.transformer import RoPEAttention, TwoWayTransformer
from skimage.measure import label  # noqa: F401

from .architecture import Architecture
from .contexts import building_network
from .internals import build_causal_mask, leave_autocast, set_feature_sizes

_DROPOUT = 0.1  # the package's value; no effect in evaluation mode
_PYRAMID = (4.0, 2.0, 1.0, 0.5)  # sides of the feature maps, relative to the grid of patches
_VIDEO_PARTS = (
    "maskmem_tpos_enc",
    "maskmem_backbone",
    "mask_downsample",
    "no_mem_pos_enc",
    "no_obj_embed_spatial",
    "no_obj_ptr",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
    "transformer",
)


def build_network(architecture: Architecture, device: torch.device, *, without_weights: bool = False) -> Sam3Image:
    """Build a SAM 3 image network with interactive (point and box) prediction, in evaluation mode.

    With the default architecture, its parameters and buffers have the same names and shapes as in the package's own
    ``build_sam3_image_model(enable_inst_interactivity=True)``.

    Args:
        architecture: sizes of the network.
        device: of the precomputed tables that are not part of a checkpoint. Parameters are on the CPU.
        without_weights: leave large parameters on the meta device, so that a checkpoint can be assigned to them.

    Returns:
        The network. The package initializes its parameters, except some of the text encoder's.
    """
    with building_network(device, without_weights=without_weights):
        network = _assemble(architecture, _PYRAMID, unused_levels=1)
    with building_network(device, without_weights=False, draws=False):
        build_causal_mask(network, device)
    return network.eval()


def build_image_network(architecture: Architecture, device: torch.device) -> Sam3Image:
    """Build the parts of a network that segment images, without weights, in evaluation mode.

    Its answers are those of :func:`build_network`, but it has no parameters that they do not depend on: the video
    memory, the coarsest level of the feature pyramid (which the package computes and drops), the projections of example
    points, and the projection of a whole phrase to one vector.

    Args:
        architecture: sizes and parts of the network.
        device: of the precomputed tables that are not part of a checkpoint.

    Returns:
        The network, with large parameters on the meta device, so that a checkpoint can be assigned to them.
    """
    with building_network(device, without_weights=True):
        network = _assemble(architecture, _PYRAMID[:-1], unused_levels=0)
        network.backbone.language_backbone.encoder.text_projection = None
        network.geometry_encoder.points_direct_project = _NoPoints(architecture.width)
        network.geometry_encoder.points_pool_project = network.geometry_encoder.points_pos_enc_project = None
    if architecture.click_head:
        for name in _VIDEO_PARTS:
            delattr(network.inst_interactive_predictor.model, name)
    if not architecture.detector:
        _remove_detector(network)
        return network.eval()
    with building_network(device, without_weights=False, draws=False):
        build_causal_mask(network, device)
    return network.eval()


def vocabulary_path() -> Path:
    """Return the path of the text encoder's byte-pair vocabulary, which open_clip ships and sam3's wheel lacks.

    Raises:
        ModuleNotFoundError: open_clip is not installed.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip_torch is not installed; install the packages in requirements.txt.")
    return Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


def _assemble(architecture: Architecture, pyramid: Sequence[float], unused_levels: int) -> Sam3Image:
    backbone = SAM3VLBackbone(
        visual=_image_encoder(architecture, pyramid), text=_text_encoder(architecture), scalp=unused_levels
    )
    transformer = TransformerWrapper(
        encoder=_detector_encoder(architecture), decoder=_detector_decoder(architecture), d_model=architecture.width
    )
    return Sam3Image(
        backbone=backbone,
        transformer=transformer,
        input_geometry_encoder=_geometry_encoder(architecture),
        segmentation_head=_segmentation_head(architecture),
        num_feature_levels=1,
        o2m_mask_predict=True,
        dot_prod_scoring=_phrase_scoring(architecture),
        use_instance_query=False,
        multimask_output=True,
        inst_interactive_predictor=_interactive_predictor(architecture) if architecture.click_head else None,
        matcher=None,
    )


class _NoPoints(torch.nn.Module):
    """Stands in for the projection of example points, which nobody gives: the geometry encoder needs one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        assert points.shape[0] == 0
        return points.new_zeros(*points.shape[:-1], self._width)


def _remove_detector(network: Sam3Image) -> None:
    network.backbone.language_backbone = network.geometry_encoder = network.transformer = None
    network.segmentation_head = network.dot_prod_scoring = None
    neck = network.backbone.vision_backbone
    # the package runs as many levels of the click head's pyramid as the detector's has
    neck.convs = torch.nn.ModuleList(torch.nn.Identity() for _ in neck.convs)


def _position_table(channels: int) -> PositionEmbeddingSine:
    return PositionEmbeddingSine(num_pos_feats=channels, normalize=True, scale=None, temperature=10000)


def _attention(
    architecture: Architecture, *, batch_first: bool, dropout: float = _DROPOUT
) -> MultiheadAttentionWrapper:
    return MultiheadAttentionWrapper(
        num_heads=architecture.heads, dropout=dropout, embed_dim=architecture.width, batch_first=batch_first
    )


def _image_encoder(architecture: Architecture, pyramid: Sequence[float]) -> Sam3DualViTDetNeck:
    vit = ViT(
        img_size=architecture.resolution,
        pretrain_img_size=architecture.vit_pretrain_resolution,
        patch_size=architecture.patch_size,
        embed_dim=architecture.vit_width,
        depth=architecture.vit_depth,
        num_heads=architecture.vit_heads,
        mlp_ratio=architecture.vit_mlp_ratio,
        norm_layer="LayerNorm",
        drop_path_rate=_DROPOUT,
        qkv_bias=True,
        use_abs_pos=True,
        tile_abs_pos=True,
        global_att_blocks=architecture.vit_global_blocks,
        rel_pos_blocks=(),
        use_rope=True,
        use_interp_rope=True,
        window_size=architecture.vit_window,
        pretrain_use_cls_token=True,
        retain_cls_token=False,
        ln_pre=True,
        ln_post=False,
        return_interm_layers=False,
        bias_patch_embed=False,
    )
    return Sam3DualViTDetNeck(
        position_encoding=_position_table(architecture.width),
        d_model=architecture.width,
        scale_factors=list(pyramid),
        trunk=vit,
        add_sam2_neck=architecture.click_head,
    )


def _text_encoder(architecture: Architecture) -> VETextEncoder:
    return VETextEncoder(
        tokenizer=SimpleTokenizer(bpe_path=str(vocabulary_path())),
        d_model=architecture.width,
        width=architecture.text_width,
        heads=architecture.text_heads,
        layers=architecture.text_layers,
        context_length=architecture.text_context,
        vocab_size=architecture.text_vocabulary,
    )


def _detector_encoder(architecture: Architecture) -> TransformerEncoderFusion:
    layer = TransformerEncoderLayer(
        activation="relu",
        d_model=architecture.width,
        dim_feedforward=architecture.ffn_width,
        dropout=_DROPOUT,
        pos_enc_at_attn=True,
        pos_enc_at_cross_attn_keys=False,
        pos_enc_at_cross_attn_queries=False,
        pre_norm=True,
        self_attention=_attention(architecture, batch_first=True),
        cross_attention=_attention(architecture, batch_first=True),
    )
    return TransformerEncoderFusion(
        layer=layer,
        num_layers=architecture.encoder_layers,
        d_model=architecture.width,
        num_feature_levels=1,
        frozen=False,
        use_act_checkpoint=True,
        add_pooled_text_to_img_feat=False,
        pool_text_with_mask=True,
    )


def _detector_decoder(architecture: Architecture) -> TransformerDecoder:
    layer = TransformerDecoderLayer(
        activation="relu",
        d_model=architecture.width,
        dim_feedforward=architecture.ffn_width,
        dropout=_DROPOUT,
        cross_attention=_attention(architecture, batch_first=False),
        n_heads=architecture.heads,
        use_text_cross_attention=True,
    )
    return TransformerDecoder(
        layer=layer,
        num_layers=architecture.decoder_layers,
        num_queries=architecture.queries,
        return_intermediate=True,
        box_refine=True,
        num_o2m_queries=0,
        dac=True,
        boxRPB="log",
        d_model=architecture.width,
        frozen=False,
        interaction_layer=None,
        dac_use_selfatt_ln=True,
        resolution=architecture.resolution,
        stride=architecture.patch_size,
        use_act_checkpoint=True,
        presence_token=True,
    )


def _phrase_scoring(architecture: Architecture) -> DotProductScoring:
    width = architecture.width
    prompt_mlp = MLP(
        input_dim=width,
        hidden_dim=architecture.ffn_width,
        output_dim=width,
        num_layers=2,
        dropout=_DROPOUT,
        residual=True,
        out_norm=torch.nn.LayerNorm(width),
    )
    return DotProductScoring(d_model=width, d_proj=width, prompt_mlp=prompt_mlp)


def _segmentation_head(architecture: Architecture) -> UniversalSegmentationHead:
    pixel_decoder = PixelDecoder(
        num_upsampling_stages=architecture.pixel_decoder_stages,
        interpolation_mode="nearest",
        hidden_dim=architecture.width,
    )
    return UniversalSegmentationHead(
        hidden_dim=architecture.width,
        upsampling_stages=architecture.pixel_decoder_stages,
        aux_masks=False,
        presence_head=False,
        dot_product_scorer=None,
        act_ckpt=False,  # it only helps training, and PyTorch would look for a GPU, and remember for the whole process
        cross_attend_prompt=_attention(architecture, batch_first=False, dropout=0),
        pixel_decoder=pixel_decoder,
    )


def _geometry_encoder(architecture: Architecture) -> SequenceGeometryEncoder:
    layer = TransformerEncoderLayer(
        activation="relu",
        d_model=architecture.width,
        dim_feedforward=architecture.ffn_width,
        dropout=_DROPOUT,
        pos_enc_at_attn=False,
        pre_norm=True,
        self_attention=_attention(architecture, batch_first=False),
        pos_enc_at_cross_attn_queries=False,
        pos_enc_at_cross_attn_keys=True,
        cross_attention=_attention(architecture, batch_first=False),
    )
    return SequenceGeometryEncoder(
        pos_enc=_position_table(architecture.width),
        encode_boxes_as_points=False,
        points_direct_project=True,
        points_pool=True,
        points_pos_enc=True,
        boxes_direct_project=True,
        boxes_pool=True,
        boxes_pos_enc=True,
        d_model=architecture.width,
        num_layers=architecture.geometry_layers,
        layer=layer,
        use_act_ckpt=True,
        add_cls=True,
        add_post_encode_proj=True,
    )


def _interactive_predictor(architecture: Architecture) -> SAM3InteractiveImagePredictor:
    tracker = _Tracker(
        architecture,
        image_size=architecture.resolution,
        num_maskmem=7,
        backbone=None,
        backbone_stride=architecture.patch_size,
        transformer=_memory_transformer(architecture),
        maskmem_backbone=_memory_encoder(architecture),
        multimask_output_in_sam=True,
        forward_backbone_per_frame_for_eval=True,
        trim_past_non_cond_mem_for_eval=False,
        multimask_output_for_tracking=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        always_start_from_first_ann_frame=False,
        non_overlap_masks_for_mem_enc=False,
        non_overlap_masks_for_output=False,
        max_cond_frames_in_attn=4,
        offload_output_to_cpu_for_eval=False,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": architecture.dynamic_multimask_via_stability,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
        clear_non_cond_mem_around_input=True,
        fill_hole_area=0,
        use_memory_selection=False,
    )
    leave_autocast(tracker)
    predictor = SAM3InteractiveImagePredictor(tracker, max_hole_area=0)  # click_head.py fills them, see there
    set_feature_sizes(predictor, [(scale * architecture.grid,) * 2 for scale in (4, 2, 1)])
    return predictor


class _Tracker(Sam3TrackerPredictor):
    """The package's tracker, but with an architecture's sizes instead of those hard-coded in ``_build_sam_heads``."""

    def __init__(self, architecture: Architecture, **options: object) -> None:
        self._architecture = architecture
        super().__init__(**options)

    def _build_sam_heads(self) -> None:
        super()._build_sam_heads()
        sizes, decoder = self._architecture, self.sam_mask_decoder
        decoder.transformer = TwoWayTransformer(
            depth=sizes.mask_decoder_depth,
            embedding_dim=sizes.width,
            mlp_dim=sizes.mask_decoder_ffn_width,
            num_heads=sizes.mask_decoder_heads,
            attention_downsample_rate=sizes.mask_decoder_downsample,
        )
        decoder.iou_prediction_head = MaskDecoderMLP(
            sizes.width,
            sizes.iou_head_width,
            decoder.num_mask_tokens,
            3,
            sigmoid_output=sizes.iou_prediction_use_sigmoid,
        )


def _memory_transformer(architecture: Architecture) -> TransformerWrapper:
    sizes = {"embedding_dim": architecture.width, "num_heads": 1, "feat_sizes": [architecture.grid, architecture.grid]}
    options = {
        "downsample_rate": 1,
        "dropout": _DROPOUT,
        "rope_theta": 10000.0,
        "use_fa3": False,
        "use_rope_real": False,
    }
    layer = TransformerDecoderLayerv2(
        cross_attention_first=False,
        activation="relu",
        dim_feedforward=architecture.ffn_width,
        dropout=_DROPOUT,
        pos_enc_at_attn=False,
        pre_norm=True,
        self_attention=RoPEAttention(**sizes, **options),
        d_model=architecture.width,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=RoPEAttention(**sizes, **options, kv_in_dim=architecture.memory_width, rope_k_repeat=True),
    )
    encoder = TransformerEncoderCrossAttention(
        remove_cross_attention_layers=[],
        batch_first=True,
        d_model=architecture.width,
        frozen=False,
        pos_enc_at_input=True,
        layer=layer,
        num_layers=architecture.memory_layers,
        use_act_checkpoint=False,
    )
    return TransformerWrapper(encoder=encoder, decoder=None, d_model=architecture.width)


def _memory_encoder(architecture: Architecture) -> SimpleMaskEncoder:
    mask_side = 16 * architecture.grid
    fuser_layer = CXBlock(
        dim=architecture.width, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True
    )
    return SimpleMaskEncoder(
        out_dim=architecture.memory_width,
        in_dim=architecture.width,
        position_encoding=_position_table(architecture.memory_width),
        mask_downsampler=SimpleMaskDownSampler(
            embed_dim=architecture.width, kernel_size=3, stride=2, padding=1, interpol_size=[mask_side, mask_side]
        ),
        fuser=SimpleFuser(layer=fuser_layer, num_layers=architecture.memory_fuser_layers),
    )
