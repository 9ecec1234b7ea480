"""The private names of sam3 and PyTorch that the engine uses; after an upgrade, these tests show what moved."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from sam3_engine import internals
from sam3_engine.model import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network(small_checkpoint):
    return load_model(small_checkpoint, CPU).network


NAMES = {
    "backbone.vision_backbone.trunk": "the image encoder's trunk, see internals.encoder_layers",
    "backbone.language_backbone.encoder.build_causal_mask": "the text encoder's mask, see internals.build_causal_mask",
    "backbone.language_backbone.encoder.attn_mask": "the text encoder's mask, see internals.build_causal_mask",
    "backbone.language_backbone.tokenizer.encode": "the tokens of a phrase, see internals.phrase_read",
    "backbone.language_backbone.tokenizer.decode": "the text of tokens, see internals.phrase_read",
    "_get_dummy_prompt": "an empty prompt of the detector, see internals.empty_geometric_prompt",
    "inst_interactive_predictor._bb_feat_sizes": "sizes of the click head's features, see internals.set_feature_sizes",
    "inst_interactive_predictor.reset_predictor": "drops the features of an image, see internals.forget_image",
    "inst_interactive_predictor.model.low_res_mask_size": "side of mask logits, see internals.mask_logits_side",
    "inst_interactive_predictor.model.bf16_context": "an autocast to leave, see internals.leave_autocast",
}


@pytest.mark.parametrize("name", NAMES)
def test_sam3_still_has_the_private_names_that_the_engine_uses(network, name):
    part = network
    for step in name.split("."):
        version = importlib.metadata.version("sam3")
        assert hasattr(part, step), f"sam3 {version} has moved network.{name}: {NAMES[name]}"
        part = getattr(part, step)


def test_pytorch_still_exposes_the_path_of_its_library():
    assert Path(internals.torch_library()).is_file(), f"torch {torch.__version__} has moved torch._C.__file__"


def test_an_empty_prompt_accepts_boxes(network):
    prompt = internals.empty_geometric_prompt(network)
    assert prompt.box_embeddings.shape[0] == 0
    prompt.append_boxes(torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.tensor([[True]]))
    assert prompt.box_embeddings.shape[0] == 1


def test_the_encoder_layers_hold_the_weights_of_the_image_trunk_and_the_text_encoder(network):
    found = {id(parameter) for layer in internals.encoder_layers(network) for parameter in layer.parameters()}
    prefixes = ("backbone.vision_backbone.trunk.", "backbone.language_backbone.")
    expected = {id(parameter) for name, parameter in network.named_parameters() if name.startswith(prefixes)}
    assert found == expected != set()


def test_no_other_module_uses_private_names():
    folder = Path(internals.__file__).parent
    private = ("._C", "bf16_context", "_bb_feat_sizes", "_get_dummy_prompt", "low_res_mask_size", "reset_predictor")
    users = {path.name for path in folder.glob("*.py") if any(name in path.read_text() for name in private)}
    assert users == {"internals.py"}
