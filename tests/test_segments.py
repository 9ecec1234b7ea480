"""Masks at the size of the source image equal those computed from all logits, although only a part is computed."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from sam3_engine.areas import drop_by_area
from sam3_engine.nms import drop_duplicates
from sam3_engine.segments import Segment, areas_of, best, label_map
from testbed.plugin import REPOSITORY
from testbed.scenes import iou

WIDTHS_AND_HEIGHTS = [(1800, 1200), (640, 427), (1, 1), (1, 900), (288, 288), (97, 101), (100, 3000), (60, 40)]
PLACES = {  # top, bottom, left, right, in 288 x 288 logits
    "in the middle": (100, 150, 120, 135),
    "one logit": (37, 38, 201, 202),
    "at the top left": (0, 20, 0, 30),
    "at the bottom right": (270, 288, 250, 288),
    "a row": (144, 145, 0, 288),
    "a column": (0, 288, 287, 288),
    "everything": (0, 288, 0, 288),
    "nothing": (0, 0, 0, 0),
}


def logits_at(place, dtype=torch.float32):
    top, bottom, left, right = PLACES[place]
    random = torch.Generator().manual_seed(top)
    logits = -torch.rand(288, 288, generator=random) * 10
    logits[top:bottom, left:right] *= torch.where(torch.rand(bottom - top, right - left, generator=random) > 0.2, -1, 1)
    return logits.to(dtype)


def whole_mask(logits, width, height):
    """Compute the mask as the sam3 package does."""
    whole = torch.nn.functional.interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False)
    return (whole.sigmoid() > 0.5)[0, 0].numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "height"), WIDTHS_AND_HEIGHTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_mask_equals_the_mask_from_all_logits(place, width, height, dtype):
    logits = logits_at(place, dtype)
    mask = Segment(logits, width, height, 0.5, "object").mask
    wanted = whole_mask(logits, width, height)
    assert mask.shape == wanted.shape
    assert mask.dtype == np.bool_
    # coordinates and sums round differently; PyTorch itself rounds in bfloat16 when it shrinks the logits
    rounds_otherwise = dtype == torch.bfloat16 and max(width, height) < 288
    assert (mask != wanted).sum() <= (1e-3 if rounds_otherwise else 1e-5) * wanted.size
    if place == "nothing":
        assert not mask.any()
    elif min(width, height) > 100:
        assert mask.any()


def test_masks_are_correct_at_any_image_size():
    random = np.random.default_rng(0)
    for _ in range(100):
        width, height = (int(side) for side in random.integers(1, 1000, 2))
        top, left = (int(start) for start in random.integers(0, 60, 2))
        logits = torch.full((64, 64), -3.0)
        logits[top : top + 1 + random.integers(0, 30), left : left + 1 + random.integers(0, 30)] = 4.0
        mask = Segment(logits, width, height, 0.5, "object").mask
        assert (mask != whole_mask(logits, width, height)).sum() <= 1, (width, height, top, left)


def test_a_label_map_paints_the_masks_in_order():
    segments = [Segment(logits_at(place), 640, 427, 0.5, "object") for place in PLACES]
    wanted = np.zeros((427, 640), np.uint8)
    for number, segment in reversed(list(enumerate(segments, start=1))):
        wanted[segment.mask] = number
    assert np.array_equal(label_map(segments, 640, 427), wanted)


def segment_of(logits, width, height):
    return Segment(torch.tensor(logits), width, height, 0.5, "object")


def test_an_empty_mask_has_an_empty_box():
    assert segment_of([[-1.0, -1.0], [-1.0, -1.0]], 40, 30).box == (0.0, 0.0, 0.0, 0.0)


def test_masks_are_interpolated_between_logits():
    mask = segment_of([[5.0, -5.0], [5.0, -5.0]], 8, 2).mask
    assert mask.tolist() == [[True] * 4 + [False] * 4] * 2
    lopsided = segment_of([[15.0, -5.0], [15.0, -5.0]], 80, 2).mask
    assert lopsided.sum(axis=1).tolist() == [50, 50]


def test_the_better_segment_is_on_top_of_the_label_map():
    left_half = segment_of([[5.0, -5.0]], 8, 4)
    everything = segment_of([[5.0, 5.0]], 8, 4)
    assert label_map([left_half, everything], 8, 4).tolist() == [[1] * 4 + [2] * 4] * 4
    assert label_map([everything, left_half], 8, 4).tolist() == [[1] * 8] * 4
    assert label_map([], 8, 4).tolist() == [[0] * 8] * 4


def test_more_segments_than_a_label_map_can_hold_are_refused():
    segments = [Segment(torch.zeros(4, 4), 8, 6, 0.5, "shoe")] * 256
    assert label_map(segments[:255], 8, 6).shape == (6, 8)
    with pytest.raises(ValueError, match="256 segments: a label map can number at most 255"):
        label_map(segments, 8, 6)


def test_a_label_map_of_classes_numbers_the_labels():
    left, right = torch.tensor([[5.0, -5.0]]), torch.tensor([[-5.0, 5.0]])
    everything = torch.tensor([[5.0, 5.0]])
    shoe, hat = Segment(left, 4, 1, 0.5, "shoe"), Segment(everything, 4, 1, 0.4, "hat")
    classes = ("cat", "hat", "shoe")
    assert label_map([shoe, hat], 4, 1, classes).tolist() == [[3, 3, 2, 2]]
    assert label_map([hat, shoe], 4, 1, classes).tolist() == [[3, 3, 2, 2]]
    assert label_map([shoe, dataclasses.replace(hat, score=0.6)], 4, 1, classes).tolist() == [[2, 2, 2, 2]]
    assert label_map([shoe, Segment(right, 4, 1, 0.1, "shoe")], 4, 1, classes).tolist() == [[3, 3, 3, 3]]
    assert label_map([shoe] * 300, 4, 1, classes).tolist() == [[3, 3, 0, 0]]
    assert label_map([], 4, 1, classes).tolist() == [[0] * 4]


def test_classes_that_a_label_map_cannot_number_are_refused():
    shoe = Segment(torch.ones(1, 1), 4, 1, 0.5, "shoe")
    many = [f"thing {number}" for number in range(254)]
    assert label_map([shoe], 4, 1, [*many, "shoe"]).tolist() == [[255] * 4]
    for segments in ([shoe], []):
        with pytest.raises(ValueError, match="256 classes: a label map can number at most 255"):
            label_map(segments, 4, 1, ["cat", *many, "shoe"])
    with pytest.raises(ValueError, match="label = 'shoe': this is not one of the classes"):
        label_map([shoe], 4, 1, many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "height"), WIDTHS_AND_HEIGHTS)
def test_areas_are_those_of_the_masks_at_source_size(width, height, dtype):
    segments = [Segment(logits_at(place, dtype), width, height, 0.5, "object") for place in PLACES]
    assert areas_of(segments) == [int(segment.mask.sum()) for segment in segments]
    assert areas_of([]) == []


def test_segments_are_dropped_by_the_share_of_the_image_that_they_cover():
    widths = [0, 1, 2, 3, 7, 10]  # tenths of the image
    logits = [torch.where(torch.arange(10) < covered, 5.0, -5.0)[None] for covered in widths]
    segments = [Segment(one, 10, 3, 0.5, str(covered)) for one, covered in zip(logits, widths, strict=True)]

    def kept(*limits):
        return [int(segment.label) for segment in drop_by_area(segments, *limits)]

    assert kept(0, 100) == widths
    assert kept(0.001, 100) == kept(10, 100) == [1, 2, 3, 7, 10]
    assert kept(30, 70) == [3, 7]  # the limits themselves are inside
    assert kept(30.001, 69.999) == []
    assert kept(0, 99.9) == [0, 1, 2, 3, 7]
    assert kept(0, 0) == [0]
    assert kept(100, 100) == [10]
    assert drop_by_area([], 10, 20) == []


@pytest.mark.parametrize("call", ["label_map(segments, 6000, 4000)", "np.array(areas_of(segments))"])
def test_many_instances_on_24_megapixels_take_less_than_half_a_gigabyte(call):
    """Measured without the label map, in a separate process. Keeping 60 masks at once would take three times that."""
    code = f"""
import numpy as np
import torch
from benchmarks.timing import peak_memory
from sam3_engine.segments import Segment, areas_of, label_map
logits = torch.randn(60, 288, 288, generator=torch.Generator().manual_seed(0))
segments = [Segment(one, 6000, 4000, 0.5, "object") for one in logits]
segments[0].mask  # threads and kernels are there
before = peak_memory()
computed = {call}
grown = peak_memory() - before
assert computed.any()
print(grown - computed.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.5e9


def scored(place, score, label="object"):
    return Segment(logits_at(place), 640, 427, score, label)


def test_the_higher_score_is_on_top_in_any_order():
    worse, better = scored("everything", 0.3), scored("in the middle", 0.8)
    painted = label_map([worse, better], 640, 427)
    assert np.array_equal(painted == 2, better.mask)
    assert np.array_equal(painted == 1, worse.mask & ~better.mask)
    assert np.array_equal(label_map([better, worse], 640, 427) == 1, better.mask)


def test_of_equal_scores_the_earlier_is_on_top():
    first, second = scored("everything", 0.5), scored("in the middle", 0.5)
    assert np.array_equal(label_map([first, second], 640, 427) == 1, first.mask)
    assert np.array_equal(label_map([second, first], 640, 427) == 1, second.mask)


def test_the_best_segments_keep_their_order():
    segments = [scored("nothing", score) for score in (0.5, 0.9, 0.1, 0.5, 0.7, 0.5)]
    assert best(segments, 4) == [0, 1, 3, 4]
    assert best(segments, 6) == best(segments, 99) == list(range(6))
    assert best([], 5) == []


# --- duplicates


def random_segments(count, seed, side=24):
    """Return segments whose masks overlap in many ways; some scores are equal, some masks are empty or equal."""
    random = np.random.default_rng(seed)
    segments = []
    for _ in range(count):
        logits = torch.full((side, side), -1.0)
        top, left, height, width = random.integers(0, [side, side, 12, 12])
        logits[top : top + height, left : left + width] = 1
        if len(segments) % 10 == 9:
            logits = segments[-5].mask_logits
        segments.append(Segment(logits, 100, 50, float(random.integers(1, 9)) / 10, "object"))
    return segments


def kept_by_the_book(segments, iou_threshold):
    """Drop duplicates greedily, pair by pair."""
    masks = [segment.mask_logits.numpy() > 0 for segment in segments]
    kept = []
    for index in sorted(range(len(segments)), key=lambda index: (-segments[index].score, index)):
        if all(iou(masks[index], masks[better]) <= iou_threshold for better in kept if masks[index].any()):
            kept.append(index)
    return [segments[index] for index in sorted(kept)]


@pytest.mark.parametrize("iou_threshold", [0, 0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("count", [1, 2, 40, 600])  # below and above the number compared at once
def test_duplicates_are_dropped_as_by_pairwise_comparison(count, iou_threshold):
    segments = random_segments(count, seed=count)
    kept = drop_duplicates(segments, iou_threshold)
    assert kept == kept_by_the_book(segments, iou_threshold)
    if iou_threshold == 1:
        assert kept == segments
    elif count > 2:
        assert len(kept) < count


def test_duplicates_are_dropped_in_every_precision_and_under_autocast():
    """Half precision cannot represent the number of pixels in a mask exactly."""
    logits = torch.full((288, 288), -1.0)
    logits[:144] = 1
    more = logits.clone()
    more[144, :144] = 1  # IoU 0.9965
    for dtype in (torch.float32, torch.bfloat16):
        segments = [Segment(part.to(dtype), 10, 10, 0.5, "object") for part in (logits, more)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert drop_duplicates(segments, 0.997) == segments
            assert drop_duplicates(segments, 0.996) == segments[:1]


def test_a_segment_that_only_overlaps_a_dropped_one_is_kept():
    """In a chain, each segment overlaps the next, but the first and the last do not overlap."""
    segments = []
    for offset, score in ((0, 0.9), (8, 0.8), (16, 0.7)):
        logits = torch.full((48, 48), -1.0)
        logits[:, offset : offset + 16] = 1
        segments.append(Segment(logits, 10, 10, score, "object"))
    assert drop_duplicates(segments, 0.3) == [segments[0], segments[2]]
