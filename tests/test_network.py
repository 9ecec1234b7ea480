"""One code path builds all networks: at SAM 3's sizes it gives the network of the sam3 package."""

import dataclasses

import pytest
import torch

from sam3_engine.architecture import Architecture
from sam3_engine.checkpoints.checkpoint import checkpoint_contents
from sam3_engine.contexts import building_network, importing_sam3
from sam3_engine.random_weights import SMALL
from testbed.direct_use import CPU, package_network

with importing_sam3():
    from sam3.model_builder import build_sam3_video_model

    from sam3_engine.network import build_network, vocabulary_path


@pytest.fixture(scope="module")
def ours():
    return build_network(Architecture(), CPU, without_weights=True)


@pytest.fixture(scope="module")
def theirs():
    return package_network(checkpoint=None)


def test_the_default_network_has_the_parameters_and_buffers_of_the_package(ours, theirs):
    def shapes(tensors):
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}

    assert shapes(ours.named_parameters()) == shapes(theirs.named_parameters())
    assert shapes(ours.named_buffers()) == shapes(theirs.named_buffers())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert sum(parameter.numel() for parameter in ours.parameters()) == 860_055_224


def test_the_default_network_has_the_modules_and_settings_of_the_package(ours, theirs):
    """Compare every plain value of a module, such as heads, windows, strides and dropout rates."""

    def settings(network):
        return {
            name: {key: value for key, value in vars(module).items() if is_plain(value)}
            for name, module in network.named_modules()
        }

    mine, reference = settings(ours), settings(theirs)
    assert mine.keys() == reference.keys()
    filling = reference["inst_interactive_predictor._transforms"]
    assert filling["max_hole_area"] == Architecture().fill_hole_area
    filling["max_hole_area"] = 0  # the engine fills holes, see click_head.py
    reference["segmentation_head"]["act_ckpt"] = False  # see network.py
    differing = {name for name in reference if mine[name] != reference[name]}
    assert differing == set()


def is_plain(value):
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def test_the_default_network_has_the_tables_of_the_package(ours, theirs):
    """Compare the buffers that are computed when the network is built, including the complex ones."""
    mine, reference = dict(ours.named_buffers()), dict(theirs.named_buffers())
    real = [name for name, buffer in reference.items() if not buffer.is_meta and "gaussian" not in name]
    assert any(reference[name].is_complex() for name in real)
    for name in real:
        assert torch.equal(mine[name], reference[name]), name


def test_checkpoints_have_the_tensor_names_of_metas_file(ours):
    """The sam3 package loads sam3.pt strictly into its video model, which therefore has the names of the real file."""
    with building_network(CPU, without_weights=True):
        video = build_sam3_video_model(load_from_HF=False, bpe_path=str(vocabulary_path()), device="meta")
        video.tracker.bf16_context.__exit__(None, None, None)
    in_metas_file = {name: tensor.shape for name, tensor in video.state_dict().items()}
    in_ours = {name: tensor.shape for name, tensor in checkpoint_contents(ours, Architecture())["model"].items()}
    assert in_ours == in_metas_file


def test_without_weights_only_small_parameters_use_memory(ours):
    made = sum(parameter.numel() for parameter in ours.parameters() if not parameter.is_meta)
    assert made < 2e6
    # checkpoints also contain this random buffer
    assert {name.rpartition(".")[2] for name, buffer in ours.named_buffers() if buffer.is_meta} == {
        "positional_encoding_gaussian_matrix"
    }


def test_a_small_network_has_the_requested_sizes():
    network = build_network(SMALL, CPU)
    assert sum(parameter.numel() for parameter in network.parameters()) < 2e6
    assert network.inst_interactive_predictor.model.low_res_mask_size == 4 * SMALL.grid
    assert network.transformer.decoder.num_queries == SMALL.queries
    assert not network.training
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize(
    "sizes",
    [
        {"resolution": 1000},
        {"queries": 0},
        {"width": -1},
        {"heads": True},
        {"vit_depth": 10**9},
        {"vit_mlp_ratio": float("nan")},
        {"vit_global_blocks": (7, 40)},
        {"fill_hole_area": -1},
        {"text_width": "1024"},
        {"queries": 256},
        {"resolution": 14 * 400},
        {"width": 250},
        {"vit_width": 1000, "vit_heads": 3},
    ],
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=list(sizes)[0]):
        dataclasses.replace(Architecture(), **sizes)


def test_an_architecture_can_be_saved_and_loaded():
    assert Architecture.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="the sizes that this version expects"):
        Architecture.from_dict({"resolution": 1008})
