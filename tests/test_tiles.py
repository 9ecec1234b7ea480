"""Large images in tiles: where they are, how the views of an object are joined, and what the shapes network finds."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam3_engine import segments as segments_module
from sam3_engine.joining import View, join, settle
from sam3_engine.mask_crops import MaskCrop, MaskIndex
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.segments import Segment, crop_masks, label_map, masks_of
from sam3_engine.settings import Settings
from sam3_engine.tiling import count_tiles, tile_image, tile_levels, windows_around
from sam3_engine.windows import ImageWindows, _Search
from testbed.plugin import Plugin
from testbed.plugin import masks_of as masks_in
from testbed.scenes import KINDS, iou
from training.evaluate_tiles import judge, large_scenes, middle_of
from training.large_scenes import STYLES

CPU = torch.device("cpu")
SEED = 40_000_000  # used neither for training nor for the tables in docs/tiles.md


# --- where the tiles and windows are


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(64, 2000), st.floats(0, 0.9, allow_subnormal=False))
def test_tiles_cover_an_image_with_at_least_the_overlap(width, height, size, overlap):
    tiles = tile_image(width, height, size, overlap)
    for axis, side in ((0, width), (1, height)):
        spans = sorted({(tile[axis], tile[axis + 2]) for tile in tiles})
        assert {stop - start for start, stop in spans} == {min(size, side)}
        assert (spans[0][0], spans[-1][1]) == (0, side)
        for (_, stop), (start, _) in itertools.pairwise(spans):
            assert stop - start >= np.floor(overlap * size)
    assert len(tiles) == len(set(tiles))


def test_an_image_that_is_not_larger_than_a_tile_is_one_tile():
    assert tile_image(672, 400, 672, 0.2) == [(0, 0, 672, 400)]
    assert len(tile_image(673, 400, 672, 0.2)) == 2
    assert len(tile_image(3000, 2000, 672, 0.2)) == 24


def test_very_large_images_have_tiles_of_several_sizes():
    assert [len(level) for level in tile_levels(3000, 2000, 672, 0.2)] == [24, 1]
    levels = tile_levels(6000, 4000, 672, 0.2)
    assert [{right - left for left, _, right, _ in level} for level in levels] == [{672}, {2016}, {6000}]
    assert [len(level) for level in levels] == [88, 12, 1]
    assert levels[0] == tile_image(6000, 4000, 672, 0.2)


@st.composite
def boxes_in_images(draw):
    width, height = draw(st.integers(2, 3000)), draw(st.integers(2, 3000))

    def span(side):
        start = draw(st.floats(0, side - 1, allow_subnormal=False))
        return start, draw(st.floats(start, side, allow_subnormal=False))

    boxes = [(*span(width), *span(height)) for _ in range(draw(st.integers(1, 8)))]
    return width, height, [(x1, y1, x2, y2) for x1, x2, y1, y2 in boxes]


@given(boxes_in_images(), st.integers(64, 1500))
def test_windows_contain_their_boxes_and_a_margin(case, size):
    width, height, boxes = case
    windows = windows_around(boxes, width, height, size)
    assert sorted(itertools.chain.from_iterable(members for _, members in windows)) == list(range(len(boxes)))
    for (left, top, right, bottom), members in windows:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        for x1, y1, x2, y2 in (boxes[member] for member in members):
            assert left <= max(0, x1 - (x2 - x1) / 4)
            assert top <= max(0, y1 - (y2 - y1) / 4)
            assert right >= min(width, x2 + (x2 - x1) / 4) - 1e-6
            assert bottom >= min(height, y2 + (y2 - y1) / 4) - 1e-6


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(64, 2000), st.floats(0, 0.9, allow_subnormal=False))
def test_tiles_are_counted_without_making_them(width, height, size, overlap):
    levels = tile_levels(width, height, size, overlap)
    assert count_tiles(width, height, size, overlap) == sum(map(len, levels))


def test_boxes_that_fit_in_one_window_share_it():
    near = [(1000, 1000, 1100, 1100), (1200, 1200, 1300, 1300)]
    ((window, members),) = windows_around(near, 3000, 3000, 672)
    assert (window, members) == ((814, 814, 1486, 1486), [0, 1])
    assert [members for _, members in windows_around([*near, (2000, 2000, 2100, 2100)], 3000, 3000, 672)] == [
        [0, 1],
        [2],
    ]
    ((large, _),) = windows_around([(1000, 1000, 2000, 1400)], 3000, 3000, 672)
    assert (large[2] - large[0], large[3] - large[1]) == (1502, 1502)


# --- crops of masks


def random_mask(seed, height=60, width=80):
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    top, left = random.integers(0, [height - 20, width - 20])
    mask[top : top + 20, left : left + 20] = random.random((20, 20)) < 0.7
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_has_the_pixels_of_its_mask(seed):
    one, other = random_mask(seed), random_mask(seed + 100)
    crop, other_crop = MaskCrop.of(one), MaskCrop.of(other)
    x1, y1, x2, y2 = crop.box
    assert np.array_equal(crop.mask, one[y1:y2, x1:x2])
    assert crop.area == one.sum() == crop.mask.sum()
    assert crop.intersection(other_crop) == (one & other).sum()
    assert crop.iou(other_crop) == pytest.approx(iou(one, other))
    moved = MaskCrop.of(one, left=1000, top=500)
    assert moved.box == (x1 + 1000, y1 + 500, x2 + 1000, y2 + 500)
    assert moved.intersection(crop) == 0
    window = (x1 + 3, y1 - 5, x2 + 9, y1 + 7)
    assert np.array_equal(crop.inside(window), one[y1 : y1 + 7, x1 + 3 : x2])
    assert crop.inside((0, 0, x1, y1)).size == 0


def test_the_crop_of_an_empty_mask_is_empty():
    empty = MaskCrop.of(np.zeros((5, 5), bool), left=10, top=10)
    assert (empty.area, empty.box, empty.mask.size) == (0, (0, 0, 0, 0), 0)
    assert empty.iou(MaskCrop.of(np.ones((5, 5)))) == empty.iou(empty) == 0


def test_an_index_finds_the_masks_near_another():
    masks = [MaskCrop.of(random_mask(seed)) for seed in range(40)]
    index = MaskIndex(masks[:5])
    for mask in masks[5:]:
        index.add(mask)
    assert [index[number] for number in range(40)] == masks
    for seed in range(100, 110):
        other = MaskCrop.of(random_mask(seed))
        near = index.near(other)
        assert [number for number in range(40) if masks[number].intersection(other)] == [
            number for number in near if masks[number].intersection(other)
        ]
        assert 0 < len(near) < 40
        for least in (0.05, 0.2, 0.4):
            assert index.has_iou(other, least) == any(mask.iou(other) >= least for mask in masks)
            covered = any(mask.intersection(other) >= least * other.area for mask in masks)
            assert index.covers(other, least) == covered
    empty = MaskIndex()
    assert empty.near(masks[0]) == []
    assert not empty.has_iou(masks[0], 0.1)
    assert not empty.covers(masks[0], 0.1)


# --- joining

IMAGE = (0, 0, 180, 100)
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 180, 100)
WINDOWS = [LEFT, RIGHT, IMAGE]


def drawn(x1, y1, x2, y2):
    mask = np.zeros((IMAGE[3], IMAGE[2]), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def seen(mask, window, score=0.9):
    """Return the view of a mask in a window."""
    x1, y1, x2, y2 = window
    return View(MaskCrop.of(mask[y1:y2, x1:x2], x1, y1), score, window, tolerance=2)


def joined_masks(joined):
    return [one.crop.box for one in joined.objects]


def test_an_object_that_two_tiles_cut_is_one_whole():
    mask = drawn(60, 20, 130, 70)
    joined = join([seen(mask, LEFT, 0.6), seen(mask, RIGHT, 0.8)], [], WINDOWS, IMAGE)
    (one,) = joined.objects
    assert (one.crop.box, one.crop.area, one.score) == ((60, 20, 130, 70), 70 * 50, 0.8)
    assert joined.unclear == []


def test_up_to_the_middle_of_the_strip_each_tile_decides():
    left, right = drawn(60, 20, 130, 70), drawn(60, 22, 130, 68)
    (one,) = join([seen(left, LEFT), seen(right, RIGHT)], [], WINDOWS, IMAGE).objects
    wanted = np.where(np.arange(180) < 90, left, right)
    assert np.array_equal(one.crop.mask, wanted[20:70, 60:130])


def test_of_a_cut_and_a_complete_view_the_complete_one_is_the_mask():
    mask = drawn(85, 20, 130, 70)
    cut, complete = seen(mask, LEFT, 0.9), seen(mask, RIGHT, 0.7)
    (one,) = join([cut, complete], [], WINDOWS, IMAGE).objects
    assert one.crop is complete.crop
    assert one.score == 0.9


def test_a_complete_view_of_only_a_part_is_not_the_object():
    """The network may draw what is left of a cut object a little away from the border that cuts it."""
    whole, left_out = drawn(40, 20, 130, 70), drawn(83, 20, 130, 70)
    cut, part = seen(whole, LEFT), seen(left_out, RIGHT)
    (one,) = join([cut, part], [], WINDOWS, IMAGE).objects
    assert (one.crop.box, one.crop.area) == ((40, 20, 130, 70), 90 * 50)
    ends_early = seen(drawn(83, 20, 98, 70), RIGHT)
    joined = join([cut, ends_early], [], WINDOWS, IMAGE)
    assert (joined.objects, [mask.box for mask in joined.unclear]) == ([], [(40, 20, 100, 70)])


def test_of_two_masks_of_one_tile_the_better_one_is_a_part_of_the_whole():
    worse, better = seen(drawn(60, 20, 130, 70), LEFT, 0.6), seen(drawn(60, 22, 130, 68), LEFT, 0.7)
    for views in ([worse, better], [better, worse]):
        (one,) = join([*views, seen(drawn(60, 22, 130, 68), RIGHT)], [], WINDOWS, IMAGE).objects
        assert (one.crop.box, one.crop.area) == ((60, 22, 130, 68), 70 * 46)


def test_a_strip_that_is_not_wider_than_the_tolerance_says_nothing():
    left, right = (0, 0, 91, 100), (89, 0, 180, 100)
    mask = drawn(60, 20, 130, 70)
    joined = join([seen(mask, left), seen(mask, right)], [], [left, right, IMAGE], IMAGE)
    assert (joined.objects, [one.box for one in joined.unclear]) == ([], [(89, 20, 130, 70), (60, 20, 91, 70)])


def test_neighbors_that_touch_stay_two():
    upper, lower = drawn(60, 20, 130, 50), drawn(60, 50, 130, 80)
    views = [seen(mask, window) for mask in (upper, lower) for window in (LEFT, RIGHT)]
    assert sorted(joined_masks(join(views, [], WINDOWS, IMAGE))) == [(60, 20, 130, 50), (60, 50, 130, 80)]
    beside = [drawn(50, 20, 90, 60), drawn(90, 20, 130, 60)]  # they touch in the strip
    views = [seen(mask, window) for mask in beside for window in (LEFT, RIGHT) if mask[:, slice(*window[::2])].any()]
    assert sorted(joined_masks(join(views, [], WINDOWS, IMAGE))) == [(50, 20, 90, 60), (90, 20, 130, 60)]


def test_a_whole_and_its_part_stay_two():
    whole, part = drawn(20, 20, 96, 80), drawn(60, 30, 96, 70)  # in the strip, they look alike
    views = [seen(mask, window) for mask in (whole, part) for window in (LEFT, RIGHT)]
    assert sorted(joined_masks(join(views, [], WINDOWS, IMAGE))) == [(20, 20, 96, 80), (60, 30, 96, 70)]


def test_what_one_tile_shows_as_two_stays_two():
    parts = drawn(60, 20, 96, 45), drawn(60, 50, 96, 75)
    both = seen(drawn(60, 20, 96, 75), RIGHT, 0.5)
    joined = join([seen(parts[0], LEFT), seen(parts[1], LEFT), both], [], WINDOWS, IMAGE)
    assert sorted(joined_masks(joined)) == [(60, 20, 96, 45), (60, 50, 96, 75)]


def test_what_there_was_no_window_for_stays_unclear():
    unclear = join([seen(drawn(60, 20, 100, 70), LEFT), seen(drawn(70, 80, 100, 95), LEFT)], [], WINDOWS, IMAGE)
    large, small = unclear.unclear
    settled = settle(unclear, [seen(drawn(60, 20, 120, 70), (40, 0, 140, 100))], IMAGE, later=[small])
    assert (len(settled.objects), settled.unclear) == (1, [small])
    assert settle(unclear, [], IMAGE, later=[large]).unclear == [large]


def test_crops_are_copied_a_few_at_a_time(small, photograph, monkeypatch):
    segments = small.predict(photograph, ConceptPrompt(("shoe",)), Options(confidence_threshold=0))
    wanted = crop_masks(segments, 10, 20)
    for most in (1, 200_000):
        monkeypatch.setattr(segments_module, "_MAX_MASK_PIXELS", most)
        crops = crop_masks(segments, 10, 20)
        assert [crop.box for crop in crops] == [crop.box for crop in wanted]
        assert [crop.bits.tobytes() for crop in crops] == [crop.bits.tobytes() for crop in wanted]


def test_views_without_a_pixel_in_the_strip_are_not_the_same():
    """Their boxes overlap there, but around the corner that both tiles see, there is nothing."""
    image, first, second = (0, 0, 180, 180), (0, 0, 100, 100), (80, 80, 180, 180)
    corner, opposite = np.zeros((180, 180), bool), np.zeros((180, 180), bool)
    corner[10:20, 10:95] = corner[10:95, 10:20] = True
    opposite[160:170, 85:170] = opposite[85:170, 160:170] = True
    joined = join([seen(corner, first), seen(opposite, second)], [], [first, second, image], image)
    assert sorted(joined_masks(joined)) == [(10, 10, 95, 95), (85, 85, 170, 170)]


def test_what_a_tile_cuts_and_no_neighbor_continues_is_unclear():
    joined = join([seen(drawn(60, 20, 100, 70), LEFT)], [], WINDOWS, IMAGE)
    assert joined.objects == []
    assert [mask.box for mask in joined.unclear] == [(60, 20, 100, 70)]


def test_a_fragment_of_a_known_object_is_dropped():
    whole = drawn(85, 20, 150, 80)
    sliver = seen(drawn(90, 40, 100, 45), LEFT)
    joined = join([seen(whole, RIGHT), sliver], [], WINDOWS, IMAGE)
    assert (joined_masks(joined), joined.unclear) == ([(85, 20, 150, 80)], [])


def test_the_whole_image_shows_only_what_is_larger_than_a_tile():
    small, large = drawn(20, 20, 60, 60), drawn(20, 10, 170, 90)
    whole = [View(MaskCrop.of(mask), 0.9, IMAGE, 2) for mask in (small, large)]
    assert join([], whole, WINDOWS, IMAGE).unclear == [whole[1].crop]  # the left tile sees that there is nothing
    assert join([], whole, [IMAGE], IMAGE).unclear == [view.crop for view in whole]
    known = [seen(large, LEFT), seen(large, RIGHT)]
    joined = join(known, whole, WINDOWS, IMAGE)
    assert (joined_masks(joined), joined.unclear) == ([(20, 10, 170, 90)], [])


def test_of_several_views_in_larger_tiles_the_finest_is_looked_at_again():
    mask = drawn(20, 10, 170, 90)
    larger = [View(MaskCrop.of(mask), 0.9, (0, 0, 178, 100), 2), View(MaskCrop.of(mask), 0.9, IMAGE, 2)]
    assert join([], larger, [LEFT, RIGHT, IMAGE], IMAGE).unclear == [larger[0].crop]


def test_another_look_settles_what_was_unclear():
    unclear = join([seen(drawn(60, 20, 100, 70), LEFT)], [], WINDOWS, IMAGE)
    window = (40, 0, 140, 100)
    complete, elsewhere = seen(drawn(60, 20, 120, 70), window), seen(drawn(50, 80, 60, 90), window)
    settled = settle(unclear, [complete, elsewhere], IMAGE)
    assert (settled.objects, settled.unclear) == ([complete], [])
    again = settle(unclear, [seen(drawn(60, 20, 150, 70), window)], IMAGE)
    assert (again.objects, [mask.box for mask in again.unclear]) == ([], [(60, 20, 140, 70)])
    assert settle(unclear, [], IMAGE).unclear == settle(unclear, [], IMAGE).objects == []
    twice = settle(unclear, [complete, seen(drawn(61, 20, 121, 70), (45, 0, 145, 100), 0.5)], IMAGE)
    assert twice.objects == [complete]


# --- another look


class Looks(ImageWindows):
    """Windows that note what is looked at, of an image that nothing encodes."""

    def __init__(self, width, height, **options):
        rgb = np.zeros((height, width, 3), np.uint8)
        super().__init__(None, rgb, Options(**options), lambda: None, lambda: None)
        self.looked = []

    def is_cached(self, window):
        return False

    def look(self, window, ask, on_encoded=lambda: None):
        self.looked.append(window)
        return ask(window)


def in_scene(boxes, width, height):
    """Return a function that finds the boxes in a window, cut by it; masks have 100 logits per side."""

    def find_in(window, names, _):
        x1, y1, x2, y2 = window
        found = []
        for box in boxes:
            mask = np.zeros((height, width), np.float32)
            mask[box[1] : box[3], box[0] : box[2]] = 1
            logits = torch.from_numpy(cv2.resize(mask[y1:y2, x1:x2], (100, 100), interpolation=cv2.INTER_AREA))
            if (logits > 0.5).any():
                found.append(Segment(logits - 0.5, x2 - x1, y2 - y1, 0.9, "thing"))
        return dict.fromkeys(names, found)

    return find_in


def search(windows, find_in):
    levels = tile_levels(windows.width, windows.height, windows.options.tile_size, windows.options.tile_overlap)
    (found,) = _Search(windows, levels, ["thing"], find_in).run().values()
    looked = windows.looked[sum(map(len, levels)) :]
    return [segment.crop for segment in found], looked


def test_the_largest_of_what_is_unclear_is_looked_at_first_and_the_rest_after_it():
    """Without an overlap, the borders of 12 tiles cut all of 16 things, too far apart for common windows."""
    windows = Looks(1200, 400, tile_size=200, tile_overlap=0)
    places = [(x, y) for x in range(200, 1200, 200) for y in (100, 300)] + [(x, 200) for x in range(100, 1200, 200)]
    things = [(x - half, y - half, x + half, y + half) for half, (x, y) in enumerate(places, 40)]
    found, looked = search(windows, in_scene(things, 1200, 400))
    assert sorted(crop.box for crop in found) == sorted(things)
    assert len(looked) == len(set(looked)) == len(things)
    in_window = [
        next(
            box
            for box in things
            if window[0] <= box[0] <= box[2] <= window[2] and window[1] <= box[1] <= box[3] <= window[3]
        )
        for window in looked
    ]
    assert in_window == things[::-1]


def test_what_every_window_cuts_is_looked_at_twice():
    """It reaches the right border of every window but the image."""
    windows = Looks(400, 200, tile_size=200, tile_overlap=0)

    def find_in(window, names, _):
        x1, y1, x2, y2 = window
        logits = torch.full((y2 - y1, x2 - x1), -1.0)
        logits[80:120, 150 - x1 :] = 1
        segments = [Segment(logits, x2 - x1, y2 - y1, 0.9, "thing")] if x1 < 150 and window != windows.image else []
        return dict.fromkeys(names, segments)

    assert search(windows, find_in) == ([], [(75, 0, 275, 200), (112, 0, 312, 200)])


def test_small_regions_are_removed_before_the_borders_of_windows_are_looked_at():
    def find_in(window, names, _):
        logits = torch.full((100, 100), -1.0)
        if window == (0, 0, 200, 200):
            logits[20:60, 20:60] = logits[30, 99] = 1
        return dict.fromkeys(names, [Segment(logits, window[2] - window[0], window[3] - window[1], 0.9, "thing")])

    sizes = {"tile_size": 200, "tile_overlap": 0}
    assert search(Looks(400, 200, **sizes), find_in)[0] == []
    (found,), looked = search(Looks(400, 200, **sizes, min_region_percent=5), find_in)
    assert (found.box, looked) == ((40, 40, 120, 120), [])


# --- the shapes network


@pytest.fixture
def looked_at(monkeypatch):
    """Note the windows that are looked at."""
    windows = []
    look = ImageWindows.look

    def noted(self, window, *arguments):
        windows.append(window)
        return look(self, window, *arguments)

    monkeypatch.setattr(ImageWindows, "look", noted)
    return windows


@pytest.fixture(scope="module")
def shapes(shapes_checkpoint):
    return Predictor(load_model(shapes_checkpoint, CPU))


@pytest.fixture(scope="module")
def scene():
    """Return a scene of 2000 x 1400 pixels with shapes from 80 to 900."""
    return next(large_scenes(SEED, [(2000, 1400, 40)], "training generator", 80))


TILES = Options(tile_size=672)


def test_tiles_find_what_is_too_small_without_them(shapes, scene):
    without, tiles = (judge(shapes, [scene], options, outlined=6) for options in (Options(), TILES))
    assert without.recall.good < 0.5 * without.recall.all
    assert tiles.recall.good >= 0.95 * tiles.recall.all
    assert tiles.precision.good >= 0.9 * tiles.precision.all
    assert tiles.single.all > 20
    assert tiles.single.good >= 0.95 * tiles.single.all
    assert np.mean(tiles.cut_ious) >= 0.93
    for kind in ("box", "point"):
        assert np.mean(tiles.ious[kind]) >= 0.93
        assert np.median(tiles.edges[kind]) < np.median(without.edges[kind]) / 3


def test_a_point_gives_all_of_what_is_larger_than_its_window(shapes, scene, looked_at):
    options = Options(tile_size=448)
    by_size = sorted(scene.shapes, key=lambda shape: shape.diameter)
    large, small = by_size[-1], by_size[0]
    assert large.diameter > 448 > 2 * small.diameter
    for shape, is_larger in ((large, True), (small, False)):
        looked_at.clear()
        prompt = GeometricPrompt(points=(middle_of(shape.crop),), point_labels=(1,))
        (segment,) = shapes.predict(scene.image, prompt, options)
        assert segment.crop.iou(shape.crop) > 0.93
        sides = [right - left for left, _, right, _ in looked_at]
        assert sides[0] == 448
        assert sides == sorted(set(sides))
        assert (len(sides) > 1) == is_larger
        assert sides[-1] < 2 * max(448, shape.diameter)


def test_an_example_in_one_tile_finds_what_is_like_it_in_all(shapes):
    wanted = matched = found = 0
    for seed, style in enumerate(STYLES, SEED + 1):
        scene = next(large_scenes(seed, [(2000, 1400, 30)], style, 120))
        kinds = [(shape.kind, shape.color) for shape in scene.shapes]
        example = max(scene.shapes, key=lambda shape: kinds.count((shape.kind, shape.color)))
        alike = [shape for shape in scene.shapes if (shape.kind, shape.color) == (example.kind, example.color)]
        segments = shapes.predict(scene.image, ConceptPrompt(boxes=(example.crop.box,), box_labels=(1,)), TILES)
        wanted, found = wanted + len(alike), found + len(segments)
        matched += sum(any(one.crop.iou(shape.crop) > 0.7 for one in segments) for shape in alike)
    assert wanted > 6
    assert matched >= 0.8 * max(wanted, found)


# --- with everything else


@pytest.fixture(scope="module")
def small(small_checkpoint):
    return Predictor(load_model(small_checkpoint, CPU))


SMALL_TILES = Options(confidence_threshold=0, tile_size=300, tile_overlap=0.1)
PROMPTS = {
    "phrases": ConceptPrompt(("shoe", "hat")),
    "example": ConceptPrompt(boxes=((60.0, 80.0, 300.0, 330.0),), box_labels=(1,)),
    "point": GeometricPrompt(points=((210.0, 150.0), (220.0, 160.0)), point_labels=(1, 0)),
    "box and point": GeometricPrompt(boxes=((60.0, 80.0, 200.0, 230.0),), points=((70.0, 90.0),), point_labels=(0,)),
    "boxes": GeometricPrompt(
        boxes=((5.0, 5.0, 100.0, 100.0), (400.0, 300.0, 630.0, 420.0), (50.0, 50.0, 150.0, 150.0)),
        categories=("cat", "dog", "cat"),
    ),
}


def pixels_of(segments):
    return [(one.label, one.score, one.mask.tobytes()) for one in segments]


@pytest.mark.parametrize("kind", PROMPTS)
def test_tiles_that_are_not_smaller_than_the_image_change_nothing(small, photograph, kind):
    without = small.predict(photograph, PROMPTS[kind], Options(confidence_threshold=0))
    with_tiles = small.predict(photograph, PROMPTS[kind], Options(confidence_threshold=0, tile_size=640))
    assert pixels_of(with_tiles) == pixels_of(without) != []
    assert all(one.crop is None for one in with_tiles)


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_are_whole_and_in_the_order_of_the_prompt(small, photograph, kind):
    prompt = PROMPTS[kind]
    segments = small.predict(photograph, prompt, SMALL_TILES)
    assert {(one.mask.shape, one.mask.dtype) for one in segments} == {((427, 640), np.dtype(bool))}
    if kind in ("phrases", "example"):
        order = [(prompt.names.index(one.label), -one.score) for one in segments]
        assert order == sorted(order)
    else:
        assert [one.label for one in segments] == list(prompt.labels)
        three = small.predict(photograph, prompt, Options(multimask=True, tile_size=300))
        assert [one.label for one in three] == [label for label in prompt.labels for _ in range(3)]


def test_each_box_is_segmented_in_its_own_window(small, photograph):
    together = small.predict(photograph, PROMPTS["boxes"], SMALL_TILES)
    for one, box in zip(together, PROMPTS["boxes"].boxes, strict=True):
        x1, y1, x2, y2 = box
        left, top, right, bottom = one.crop.box
        assert left >= (x1 + x2) / 2 - 300
        assert right <= (x1 + x2) / 2 + 300
        assert top >= (y1 + y2) / 2 - 300
        assert bottom <= (y1 + y2) / 2 + 300


def parts_of(segment):
    count, _ = cv2.connectedComponents(segment.mask.view(np.uint8))
    return count - 1


def test_options_apply_to_whole_instances(small, photograph):
    everything = small.predict(photograph, PROMPTS["phrases"], SMALL_TILES)
    areas = [one.crop.area / photograph[..., 0].size * 100 for one in everything]
    assert len(everything) > 6
    limits = {"min_area_percent": float(np.quantile(areas, 0.3)), "max_area_percent": float(np.quantile(areas, 0.7))}

    def found(**changes):
        options = Options(confidence_threshold=0, tile_size=300, tile_overlap=0.1, **changes)
        return small.predict(photograph, PROMPTS["phrases"], options)

    between = found(**limits)
    assert pixels_of(between) == [
        pixels
        for pixels, area in zip(pixels_of(everything), areas, strict=True)
        if limits["min_area_percent"] <= area <= limits["max_area_percent"]
    ]
    assert len(found(max_detections=3)) == 3
    apart = found(iou_threshold=0.3)
    assert 1 < len(apart) < len(everything)
    assert all(one.crop.iou(other.crop) <= 0.3 for one, other in itertools.combinations(apart, 2))
    cleaned = found(min_region_percent=20)
    assert cleaned
    assert sum(map(parts_of, cleaned)) / len(cleaned) < sum(map(parts_of, everything)) / len(everything)


def test_any_number_of_instances_fit_in_a_map_of_classes():
    labels = ("shoe", "hat")
    segments = [
        Segment(
            None, 180, 100, index / 400, labels[index % 2], crop=MaskCrop.of(np.ones((4, 4)), index % 170, index // 4)
        )
        for index in range(300)
    ]
    painted = label_map(segments, 180, 100, classes=labels)
    wanted = np.zeros((100, 180), np.uint8)
    for segment in segments:  # by ascending score
        wanted[segment.mask] = labels.index(segment.label) + 1
    assert np.array_equal(painted, wanted)
    assert [mask.sum() for mask in masks_of(segments)] == [one.crop.area for one in segments]
    assert segments[7].box == (7.0, 1.0, 11.0, 5.0)
    with pytest.raises(ValueError, match="300 segments: a label map can number at most 255"):
        label_map(segments, 180, 100)


@pytest.fixture
def runs(small, monkeypatch):
    """Count the runs of the image encoder and of the detector."""
    counts = {"encoder": 0, "detector": 0}
    encode, detect = small._encode, small._detector.detect

    def count(name, run):
        def counted(*arguments):
            counts[name] += 1
            return run(*arguments)

        return counted

    monkeypatch.setattr(small, "_encode", count("encoder", encode))
    monkeypatch.setattr(small._detector, "detect", count("detector", detect))
    return counts


def test_tiles_are_encoded_once_for_all_phrases_and_thresholds(small, photograph, runs):
    image = np.ascontiguousarray(photograph[::-1])
    tiles = tile_image(640, 427, 300, 0.1)
    first = small.predict(image, ConceptPrompt(("shoe",)), SMALL_TILES)
    encoded = runs["encoder"]
    assert encoded >= len(tiles) + 1
    small.predict(image, ConceptPrompt(("shoe",)), SMALL_TILES)
    assert (runs["encoder"], runs["detector"]) == (encoded, encoded)
    fewer = small.predict(
        image, ConceptPrompt(("shoe",)), Options(confidence_threshold=1, tile_size=300, tile_overlap=0.1)
    )
    assert (runs["encoder"], runs["detector"]) == (encoded, encoded)
    assert fewer == [] != first
    small.predict(image, ConceptPrompt(("a hat",)), Options(confidence_threshold=1, tile_size=300, tile_overlap=0.1))
    assert (runs["encoder"], runs["detector"]) == (encoded, encoded + len(tiles) + 1)


def test_tiles_that_do_not_fit_in_the_budget_are_used_before_they_are_evicted(small, photograph, runs):
    """Otherwise, each tile would evict the one that is needed next."""
    image = np.ascontiguousarray(photograph[:, ::-1])
    windows = len(tile_image(640, 427, 200, 0.1)) + 1
    options = Options(confidence_threshold=1, tile_size=200, tile_overlap=0.1)
    budget = small.model.budget
    before = budget.limit
    budget.clear()
    try:
        small.predict(image, ConceptPrompt(("shoe",)), options)
        assert runs["encoder"] == windows
        budget.limit = budget.used / 2
        kept = sum(1 for _ in small.model.tiles._entries)
        assert 1 < kept < windows
        small.predict(image, ConceptPrompt(("a hat",)), options)
        assert runs["encoder"] <= 2 * windows - kept / 2
    finally:
        budget.limit = before


def test_equal_tiles_are_encoded_once(small, runs):
    image = np.tile(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8), (4, 4, 1))
    small.predict(image, ConceptPrompt(("shoe",)), Options(confidence_threshold=1, tile_size=100, tile_overlap=0))
    assert runs == {"encoder": 2, "detector": 2}  # one tile, and the whole image


def test_examples_are_read_in_a_tile_or_in_a_window_around_them(small, photograph, looked_at):
    tiles = tile_image(640, 427, 300, 0.1)
    inside, across = (20.0, 20.0, 120.0, 200.0), (140.0, 100.0, 310.0, 180.0)
    homes = {(inside,): tiles[0], (across,): (75, 0, 375, 300), (inside, across): (0, 0, 385, 385)}
    assert not any(tile[0] <= across[0] and across[2] <= tile[2] for tile in tiles)
    for boxes, home in homes.items():
        looked_at.clear()
        small.predict(photograph, ConceptPrompt(boxes=boxes, box_labels=(1,) * len(boxes)), SMALL_TILES)
        assert looked_at[0] == home


@pytest.mark.parametrize("width", [300, 640])
def test_only_the_smallest_tiles_are_to_show_all_instances(small, photograph, monkeypatch, caplog, width):
    def crowded(found):
        return {name for name, segments in found.items() if segments and segments[0].width == width}

    monkeypatch.setattr(small._detector, "crowded", crowded)
    small.predict(photograph, ConceptPrompt(("shoe",)), SMALL_TILES)
    assert ("there may be more" in caplog.text) == (width == 300)


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", ["phrases", "boxes"])
def test_a_run_can_be_stopped_before_every_step(small, photograph, kind):
    steps, encoded = [], []
    wanted = pixels_of(
        small.predict(
            photograph,
            PROMPTS[kind],
            SMALL_TILES,
            on_step=lambda: steps.append(1),
            on_encoded=lambda: encoded.append(1),
        )
    )
    settings = Settings(
        input_text="['shoe', 'hat']" if kind == "phrases" else "",
        tile_size=300,
        tile_overlap=0.1,
        input_box="[[1, 2, 3, 4]]",
    )
    assert len(encoded) == settings.count_steps(640, 427)
    assert len(steps) > len(encoded)
    for last in (1, len(steps) // 2, len(steps)):
        left = itertools.count(last - 1, -1)

        def stop(left=left):
            if next(left) == 0:
                raise StopError

        with pytest.raises(StopError):
            small.predict(photograph, PROMPTS[kind], SMALL_TILES, on_step=stop)
    assert pixels_of(small.predict(photograph, PROMPTS[kind], SMALL_TILES)) == wanted


def test_the_image_is_shrunk_before_it_is_seen_not_before_it_is_cut(small, photograph):
    shrunk, whole = (
        small.predict(photograph, PROMPTS["boxes"], Options(size_percent=percent, tile_size=300))
        for percent in (10, 100)
    )
    assert {one.mask.shape for one in shrunk} == {(427, 640)}
    assert pixels_of(shrunk) != pixels_of(whole)


def test_the_plugin_uses_tiles(shapes_checkpoint, scene):
    plugin = Plugin(model_weight_file=shapes_checkpoint, cuda=False)
    emitted = []
    plugin.algorithm.emit_step_progress = lambda: emitted.append(1)
    mask, objects = plugin.segment(scene.image, input_text=list(KINDS), tile_size=672, instance_output=True)
    assert len(emitted) == plugin.algorithm.get_progress_steps() == 2 + len(tile_image(2000, 1400, 672, 0.2)) + 1
    found = objects.get_objects()
    assert len(found) == mask.get_mask().max() > 30
    shapes = [shape.crop for shape in scene.shapes]
    good = sum(any(MaskCrop.of(one.mask).iou(shape) > 0.5 for shape in shapes) for one in found)
    assert good >= 0.9 * len(found)
    assert len(list(masks_in(mask))) == len(found)
