"""Small parts and holes of masks are removed with `min_region_percent`, and nothing else changes.

The small holes of point and box masks are always filled, on every device, as the sam3 package does.
"""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from skimage.morphology import flood

from sam3_engine import ConceptPrompt, GeometricPrompt, Options, open_predictor, regions
from sam3_engine.contexts import importing_sam3
from sam3_engine.errors import DeviceMemoryError
from sam3_engine.model import load_model
from sam3_engine.nms import drop_duplicates
from sam3_engine.predictor import Predictor
from sam3_engine.regions import fill_small_holes, remove_small_regions
from sam3_engine.segments import Segment, bounding_box
from testbed.plugin import Plugin
from testbed.scenes import draw_scene, iou

with importing_sam3():
    from sam3.model.utils.sam1_utils import SAM2Transforms

SIDE = 288  # of SAM 3's mask logits
DTYPES = [torch.float32, torch.bfloat16]


def drawn(*rows):
    """Return logits: 2 where a row has a letter, -3 elsewhere."""
    return torch.tensor([[2.0 if pixel == "X" else -3.0 for pixel in row] for row in rows])


def cleaned(logits, percent):
    (segment,) = remove_small_regions([Segment(logits, 64, 48, 0.5, "shoe")], percent)
    return segment.mask_logits


def shown(logits):
    return ["".join("X" if value > 0 else "." for value in row) for row in logits.tolist()]


# 20 pixels of mask: a part of 15 with a hole of 1 at (3, 2), a part of 4, a part of 1
PARTS = (
    "........X",
    "XXXX.....",
    "XXXX.....",
    "XX.X..XX.",
    "XXXX..XX.",
)


@pytest.mark.parametrize(
    ("percent", "mask"),
    [
        (0, PARTS),
        (5, PARTS),  # the smallest are not smaller than 5 % of 20
        (5.01, (".........", "XXXX.....", "XXXX.....", "XXXX..XX.", "XXXX..XX.")),
        (20, (".........", "XXXX.....", "XXXX.....", "XXXX..XX.", "XXXX..XX.")),
        (20.01, (".........", "XXXX.....", "XXXX.....", "XXXX.....", "XXXX.....")),
        (100, (".........", "XXXX.....", "XXXX.....", "XXXX.....", "XXXX.....")),
    ],
)
def test_the_share_is_that_of_the_masks_own_area(percent, mask):
    assert shown(cleaned(drawn(*PARTS), percent)) == list(mask)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # parts that touch at a corner are one, and do not enclose the background between them
        (("X...", ".X..", "..X.", "...X"), ("X...", ".X..", "..X.", "...X")),
        (("XX.", "X.X", ".XX"), ("XX.", "XXX", ".XX")),
        # background at the border is no hole
        (("XXXX", "XXX.", "XXXX"), ("XXXX", "XXX.", "XXXX")),
        # equal parts all stay
        (("X.X", "...", "X.X"), ("X.X", "...", "X.X")),
        # a part in a hole goes with the hole
        (
            ("XXXXXXX", "XXXXXXX", "XX...XX", "XX.X.XX", "XX...XX", "XXXXXXX", "XXXXXXX"),
            ("XXXXXXX",) * 7,
        ),
        (("...", "...", "..."), ("...", "...", "...")),
        (("XXX", "XXX", "XXX"), ("XXX", "XXX", "XXX")),
        (("X..", "...", "..."), ("X..", "...", "...")),
    ],
)
def test_regions(before, after):
    assert shown(cleaned(drawn(*before), 40)) == list(after)


def test_only_the_sign_of_removed_pixels_changes():
    logits = torch.randn(96, 96, generator=torch.Generator().manual_seed(3))
    before = logits.clone()
    after = cleaned(logits, 3)
    assert torch.equal(logits, before)
    flipped = (after > 0) != (before > 0)
    assert 100 < flipped.sum() < 96 * 96
    assert torch.equal(after[~flipped], before[~flipped])
    clear = before.abs() > 0.1
    assert torch.equal(after[flipped & clear], -before[flipped & clear])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearly_undecided_pixels_are_removed_too(dtype):
    """In bfloat16, the sigmoid of small numbers is 0.5, and 0 has no sign."""
    logits = torch.full((20, 20), 4.0, dtype=dtype)
    logits[:, 12:] = -4
    logits[5, 5], logits[8, 8], logits[10, 15] = 0, -1e-4, 1e-4
    segment = Segment(cleaned(logits, 5), 20, 20, 0.5, "shoe")
    assert segment.mask.sum() == 20 * 12
    assert bounding_box(segment.mask) == (0, 0, 12, 20)


def test_0_percent_copies_nothing_and_clean_masks_stay_as_they_are():
    whole = ("XXX......",) * len(PARTS)
    segments = [Segment(drawn(*rows), 64, 48, 0.5, "shoe") for rows in (PARTS, whole)]
    assert remove_small_regions(segments, 0) == segments
    assert remove_small_regions([], 50) == []
    changed, same = remove_small_regions(segments, 50)
    assert same is segments[1]
    assert changed is not segments[0]
    assert shown(segments[0].mask_logits) == list(PARTS)
    assert dataclasses.replace(changed, mask_logits=None).__dict__ == (
        dataclasses.replace(segments[0], mask_logits=None).__dict__
    )


def test_many_masks_are_cleaned_as_each_alone():
    logits = torch.randn(600, 12, 12, generator=torch.Generator().manual_seed(0))
    segments = [Segment(one, 64, 48, 0.5, "shoe") for one in logits]
    together = remove_small_regions(segments, 10)
    assert all(torch.equal(found.mask_logits, cleaned(one, 10)) for found, one in zip(together, logits, strict=True))


def parts_by_flooding(mask, neighbours):
    """Return the parts of a mask, found one pixel at a time by a library's flood fill."""
    parts, left = [], mask.copy()
    while left.any():
        part = flood(left.astype(np.uint8), tuple(np.argwhere(left)[0]), connectivity=neighbours)
        parts.append(part)
        left &= ~part
    return parts


@pytest.mark.parametrize("seed", range(4))
def test_random_masks_are_cleaned_by_the_definition(seed):
    mask = np.random.default_rng(seed).random((24, 30)) < (0.35, 0.5, 0.65, 0.8)[seed]
    limit = 0.04 * mask.sum()
    parts = parts_by_flooding(mask, 2)
    largest = max(part.sum() for part in parts)
    wanted = np.any([part for part in parts if part.sum() >= limit or part.sum() == largest], axis=0)
    inside = np.zeros_like(mask)
    inside[1:-1, 1:-1] = True
    for hole in parts_by_flooding(~wanted, 1):
        if hole.sum() < limit and not (hole & ~inside).any():
            wanted |= hole
    found = cleaned(torch.from_numpy(np.where(mask, 1.5, -2.5)), 4) > 0
    assert np.array_equal(found.numpy(), wanted)
    assert not np.array_equal(wanted, mask)


# --- boxes


@pytest.mark.parametrize("dtype", DTYPES)
def test_stray_pixels_do_not_move_the_box(dtype):
    """At 1 %, the boxes of drawn shapes are those of the masks without stray pixels, and at most 4 pixels off."""
    random = np.random.default_rng(5)
    moved, errors = [], []
    for _ in range(6):
        scene = draw_scene(random, 640, 448)
        for shape in scene.shapes:
            coverage = torch.from_numpy(shape.whole.coverage)[None, None]
            logits = torch.nn.functional.interpolate(coverage, (SIDE, SIDE), mode="area")[0, 0].sub(0.5).mul(12)
            stray = logits.clone()
            for row, column in random.integers(0, SIDE, (2, 2)):
                stray[row, column] = 3
            clean, dirty = (Segment(one.to(dtype), 640, 448, 0.9, "shape") for one in (logits, stray))
            (mended,) = remove_small_regions([dirty], 1)
            (reference,) = remove_small_regions([clean], 1)
            assert bounding_box(mended.mask) == bounding_box(reference.mask)
            assert iou(mended.mask, shape.whole.mask) > 0.93
            errors.append(np.abs(np.subtract(bounding_box(mended.mask), shape.whole.box)).max())
            moved.append(np.abs(np.subtract(bounding_box(dirty.mask), shape.whole.box)).max())
    assert len(errors) > 15
    assert max(errors) <= 4
    assert np.mean(errors) < 2
    assert np.median(moved) > 60


# --- holes of points and boxes


def package_fills(mask_logits, max_area):
    """Return what the sam3 package makes of mask logits (masks, candidates, h, w)."""
    transforms = SAM2Transforms(resolution=56, mask_threshold=0.0, max_hole_area=max_area)
    return transforms.postprocess_masks(torch.from_numpy(mask_logits), mask_logits.shape[-2:]).numpy()


def smooth_noise(*shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return (4 * torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)).numpy()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("max_area", [0, 1, 8, 256, 10**6])
@pytest.mark.parametrize("shape", [(3, 1, 48, 48), (2, 3, 31, 31), (1, 1, 1, 1)])
def test_holes_are_filled_as_the_package_fills_them(shape, max_area):
    mask_logits = smooth_noise(*shape)
    before = mask_logits.copy()
    filled = fill_small_holes(mask_logits, max_area)
    assert np.array_equal(filled, package_fills(mask_logits, max_area))
    assert np.array_equal(fill_small_holes(mask_logits[0], max_area), filled[0])
    assert np.array_equal(mask_logits, before)
    if shape[-1] > 1:
        assert np.array_equal(filled, mask_logits) == (max_area == 0)


@pytest.mark.parametrize(
    ("mask", "max_area", "filled"),
    [
        (("XXXX", "X..X", "XXXX"), 2, ("XXXX", "XXXX", "XXXX")),
        (("XXXX", "X..X", "XXXX"), 1, ("XXXX", "X..X", "XXXX")),
        # holes that touch at a corner are one
        (("XXXX", "X.XX", "XX.X", "XXXX"), 1, ("XXXX", "X.XX", "XX.X", "XXXX")),
        (("XXXX", "X.XX", "XX.X", "XXXX"), 2, ("XXXX", "XXXX", "XXXX", "XXXX")),
        # also at the border
        (("X.X", "XXX", ".XX"), 1, ("XXX", "XXX", "XXX")),
    ],
)
def test_a_hole_is_any_small_region_of_background(mask, max_area, filled):
    logits = drawn(*mask)
    logits[0, 0] = 0.5
    found = fill_small_holes(logits.numpy(), max_area)
    assert shown(torch.from_numpy(found)) == list(filled)
    holes = (logits <= 0).numpy() & (found > 0)
    assert (found[holes] == 10).all()
    assert np.array_equal(found[~holes], logits.numpy()[~holes])


CLICKS = {
    "points": GeometricPrompt((), ((210.0, 150.0), (500.0, 300.0), (40.0, 300.0)), (1, 0, 0)),
    "box and point": GeometricPrompt(((60.0, 80.0, 300.0, 330.0),), ((210.0, 150.0),), (0,)),
    "18 boxes": GeometricPrompt(tuple((30.0 * n, 80.0, 30.0 * n + 90, 330.0) for n in range(18))),
}


def clicked(model, image, prompt):
    """Return the scores and mask logits of all candidates."""
    found = Predictor(model).predict(image, prompt, Options(multimask=True))
    return [(segment.score, segment.mask_logits.tolist()) for segment in found]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CLICKS)
def test_points_and_boxes_are_answered_as_if_the_package_filled_the_holes(
    small_checkpoint, photograph, kind, precision
):
    model = load_model(small_checkpoint, torch.device("cpu"), precision)
    sizes, area = model.architecture, 100
    model.architecture = dataclasses.replace(sizes, fill_hole_area=area)
    filled = clicked(model, photograph, CLICKS[kind])
    model.architecture = dataclasses.replace(sizes, fill_hole_area=0)
    unfilled = clicked(model, photograph, CLICKS[kind])
    model.network.inst_interactive_predictor._transforms.max_hole_area = area
    assert clicked(model, photograph, CLICKS[kind]) == filled != unfilled


def test_holes_are_filled_where_the_package_cannot_fill_them(small_checkpoint, photograph, monkeypatch, recwarn):
    """On a GPU, it needs Triton and a compiler. It catches every error and returns masks with holes."""
    model = load_model(small_checkpoint, torch.device("cpu"))
    wanted = clicked(model, photograph, CLICKS["18 boxes"])
    without_compiler = mock.Mock(side_effect=FileNotFoundError("no compiler"))
    monkeypatch.setattr("sam3.perflib.connected_components.connected_components", without_compiler)
    assert clicked(model, photograph, CLICKS["18 boxes"]) == wanted
    assert not recwarn.list


def test_if_memory_runs_out_while_holes_are_filled_it_is_tried_once_more(small_checkpoint, photograph, monkeypatch):
    model = load_model(small_checkpoint, torch.device("cpu"))
    wanted = clicked(model, photograph, CLICKS["18 boxes"])
    label, errors = regions._label_regions, [MemoryError("Unable to allocate 2.00 GiB for an array")]

    def label_regions(*arguments):
        if errors:
            raise errors.pop()
        return label(*arguments)

    monkeypatch.setattr(regions, "_label_regions", label_regions)
    assert clicked(model, photograph, CLICKS["18 boxes"]) == wanted
    assert errors == []
    errors[:] = [MemoryError()] * 2
    with pytest.raises(DeviceMemoryError, match="Not enough memory on cpu"):
        clicked(model, photograph, CLICKS["18 boxes"])


# --- prompts


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return open_predictor(small_checkpoint, cuda=False)


BOX = (60.0, 80.0, 300.0, 330.0)
PROMPTS = {
    "phrases": (ConceptPrompt(("shoe", "hat")), Options(confidence_threshold=0)),
    "example box": (ConceptPrompt((), (BOX,), (1,)), Options(confidence_threshold=0)),
    "point": (GeometricPrompt((), ((210.0, 150.0),), (1,)), Options()),
    "boxes": (GeometricPrompt((BOX, (5.0, 5.0, 635.0, 420.0))), Options(multimask=True)),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_prompt_is_answered_with_clean_masks(predictor, photograph, kind):
    prompt, options = PROMPTS[kind]
    embedding = predictor.encode_image(photograph)
    before = predictor.segment(embedding, prompt, options)
    after = predictor.segment(embedding, prompt, dataclasses.replace(options, min_region_percent=2))
    wanted = remove_small_regions(before, 2)
    assert [one.score for one in after] == [one.score for one in before]
    assert [one.mask.tobytes() for one in after] == [one.mask.tobytes() for one in wanted]
    assert any(not np.array_equal(a.mask, b.mask) for a, b in zip(after, before, strict=True))
    assert all(one.mask.any() for one, other in zip(after, before, strict=True) if other.mask.any())


def test_another_value_does_not_run_the_network_again(predictor, photograph, monkeypatch):
    prompt, options = PROMPTS["phrases"]
    embedding = predictor.encode_image(photograph)
    before = [one.mask.tobytes() for one in predictor.segment(embedding, prompt, options)]
    monkeypatch.setattr(predictor.model.network, "forward_grounding", None)
    for percent in (2, 50, 2):
        predictor.segment(embedding, prompt, dataclasses.replace(options, min_region_percent=percent))
    assert [one.mask.tobytes() for one in predictor.segment(embedding, prompt, options)] == before


def test_duplicates_are_found_among_the_clean_masks(predictor, photograph):
    prompt, options = PROMPTS["phrases"]
    embedding = predictor.encode_image(photograph)
    every = predictor.segment(embedding, prompt, options)
    kept = predictor.segment(embedding, prompt, dataclasses.replace(options, iou_threshold=0.7, min_region_percent=50))
    wanted = drop_duplicates(remove_small_regions(every, 50), 0.7)
    assert [one.mask.tobytes() for one in kept] == [one.mask.tobytes() for one in wanted]
    assert len(kept) not in (1, len(every), len(drop_duplicates(every, 0.7)))


@pytest.mark.parametrize("prompt", [{"input_text": "shoe", "confidence_threshold": 0}, {"input_box": list(BOX)}])
def test_the_plugins_masks_and_objects_are_clean(small_checkpoint, photograph, prompt):
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
    before = [one.mask.copy() for one in plugin.segment(photograph, instance_output=True, **prompt)[1].get_objects()]
    objects = plugin.segment(photograph, instance_output=True, min_region_percent=100, **prompt)[1].get_objects()
    assert len(objects) == len(before)
    changed = 0
    for found, mask in zip(objects, before, strict=True):
        left, top, right, bottom = bounding_box(found.mask)
        assert found.box == [left, top, right - left, bottom - top]
        changed += not np.array_equal(found.mask, mask)
    assert changed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_on_a_gpu_are_cleaned_there():
    logits = torch.randn(40, 96, 96, generator=torch.Generator().manual_seed(1))
    on_gpu = remove_small_regions([Segment(one, 64, 48, 0.5, "shoe") for one in logits.cuda()], 2)
    for found, one in zip(on_gpu, logits, strict=True):
        assert found.mask_logits.device.type == "cuda"
        assert torch.equal(found.mask_logits.cpu(), cleaned(one, 2))
