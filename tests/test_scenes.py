"""Synthetic scenes match their ground truth."""

import colorsys
import itertools

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from testbed.scenes import (
    COLORS,
    HUES,
    KINDS,
    LEAST_CONTRAST,
    LEAST_VISIBLE,
    MOST_SHAPES,
    VOCABULARY,
    Scene,
    Shape,
    draw_scene,
    plural,
)
from training.pillow_scenes import draw_with_pillow

SIZES = [(240, 240), (480, 240), (120, 240), (333, 200)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    random = np.random.default_rng(5)
    return [draw_scene(random, *SIZES[k % len(SIZES)]) for k in range(120)]


@pytest.fixture(scope="module")
def shapes(scenes) -> list[tuple[Scene, Shape]]:
    return [(scene, shape) for scene in scenes for shape in scene.shapes]


def test_the_same_seed_gives_the_same_scene():
    one, same, other = (draw_scene(np.random.default_rng(seed), 120, 90) for seed in (1, 1, 2))
    assert np.array_equal(one.image, same.image)
    assert [shape.color for shape in one.shapes] == [shape.color for shape in same.shapes]
    assert all(np.array_equal(a.whole.mask, b.whole.mask) for a, b in zip(one.shapes, same.shapes, strict=True))
    assert not np.array_equal(one.image, other.image)


def test_scenes_have_the_requested_size_and_are_not_empty(scenes):
    for k, scene in enumerate(scenes):
        width, height = SIZES[k % len(SIZES)]
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.shapes) <= MOST_SHAPES


def test_every_kind_and_color_is_drawn(scenes, shapes):
    assert {shape.kind for _, shape in shapes} == set(KINDS)
    assert {shape.color for _, shape in shapes} == set(COLORS)
    assert {shape.dot_color for _, shape in shapes} == {None, "white", "black"}
    assert {len(scene.shapes) for scene in scenes} == set(range(1, MOST_SHAPES + 1))


def test_a_shape_has_its_stated_color(shapes):
    for scene, shape in shapes:
        pixels = scene.image[shape.ring.coverage > 0.99]
        hue, saturation, _ = colorsys.rgb_to_hsv(*(np.median(pixels, axis=0) / 255))
        middle, spread = HUES[shape.color]
        assert abs((360 * hue - middle + 180) % 360 - 180) <= spread + 6
        assert saturation > 0.5


def test_a_dot_is_white_or_black_and_inside_its_shape(shapes):
    dotted = [(scene, shape) for scene, shape in shapes if shape.dot]
    assert len(dotted) > 30
    for scene, shape in dotted:
        brightness = np.median(scene.image[shape.dot.coverage > 0.99])
        assert brightness > 200 if shape.dot_color == "white" else brightness < 60
        assert not (shape.dot.mask & ~shape.whole.mask).any()
        assert np.allclose(shape.ring.coverage + shape.dot.coverage, shape.whole.coverage, atol=1e-6)


def test_no_pixel_belongs_to_two_shapes(scenes):
    for scene in scenes:
        covered = sum(shape.whole.coverage for shape in scene.shapes)
        assert covered.max() <= 1 + 1e-5


def test_overlapping_shapes_have_different_colors(scenes):
    """Where two shapes meet, their colors differ by more than shading and noise."""
    met = 0
    for scene in scenes:
        colors = [np.median(scene.image[shape.ring.coverage > 0.99], axis=0) for shape in scene.shapes]
        grown = [binary_dilation(shape.ring.mask, iterations=2) for shape in scene.shapes]
        for one, other in itertools.combinations(range(len(scene.shapes)), 2):
            if (grown[one] & grown[other]).sum() > 40:  # more than touching corners
                met += 1
                assert np.abs(colors[one] - colors[other]).max() > 0.7 * 255 * LEAST_CONTRAST
    assert met > 20


def test_the_background_has_low_saturation(scenes):
    for scene in scenes:
        free = sum(shape.whole.coverage for shape in scene.shapes) == 0
        background = np.median(scene.image[free].astype(float), axis=0)
        assert background.max() - background.min() < 80


def test_shapes_are_large_enough_to_be_seen(shapes):
    for scene, shape in shapes:
        area = scene.image.shape[0] * scene.image.shape[1]
        assert shape.whole.mask.sum() > 0.0015 * area * LEAST_VISIBLE
        if shape.dot:
            assert shape.dot.mask.sum() > 20


def test_some_shapes_overlap(shapes):
    """A circle fills pi / 4 of its box unless another shape covers it."""
    fill = [
        shape.whole.mask.sum() / np.prod(np.subtract(shape.whole.box[2:], shape.whole.box[:2])) for _, shape in shapes
    ]
    assert min(part for part, (_, shape) in zip(fill, shapes, strict=True) if shape.kind == "circle") < 0.7


def test_shapes_are_rotated_in_all_directions(shapes):
    """A triangle's direction is that of the pixel farthest from its center, one of three tips, modulo 120 degrees."""
    turns = []
    for _, shape in shapes:
        if shape.kind == "triangle":
            rows, columns = np.nonzero(shape.whole.mask)
            dx, dy = columns - columns.mean(), rows - rows.mean()
            farthest = np.hypot(dx, dy).argmax()
            turns.append(np.degrees(np.arctan2(dy[farthest], dx[farthest])) % 120)
    counts, _ = np.histogram(turns, bins=6, range=(0, 120))
    assert counts.min() >= 0.04 * len(turns)


def test_a_box_bounds_its_mask(shapes):
    for _, shape in shapes:
        x1, y1, x2, y2 = (int(coordinate) for coordinate in shape.whole.box)
        assert shape.whole.mask[y1:y2, x1:x2].sum() == shape.whole.mask.sum()
        assert shape.whole.mask[y1].any() and shape.whole.mask[:, x2 - 1].any()  # noqa: PT018


def test_phrases_name_the_matching_shapes(scenes):
    for scene in scenes:
        for kind in KINDS:
            wanted = [shape.whole for shape in scene.shapes if shape.kind == kind]
            for phrase in (kind, plural(kind), f"the {kind}", f" {kind.upper()} "):
                assert scene.instances(phrase) == wanted
        for color in COLORS:
            assert scene.instances(f"{color} shapes") == [s.whole for s in scene.shapes if s.color == color]
        assert scene.instances("a red star") == [
            shape.whole for shape in scene.shapes if (shape.kind, shape.color) == ("star", "red")
        ]
        assert scene.instances("crosses") == scene.instances("cross")
        assert scene.instances("object") == [shape.whole for shape in scene.shapes]
        assert scene.instances("black dots") == [s.dot for s in scene.shapes if s.dot_color == "black"]
        assert scene.instances("dot") == [shape.dot for shape in scene.shapes if shape.dot]


@pytest.mark.parametrize("phrase", ["", " ", "dog", "red dog", "red", "big red star", "star circle", "the", "crossess"])
def test_unsupported_phrases_name_nothing(scenes, phrase):
    assert all(scene.instances(phrase) == [] for scene in scenes)


def test_synonyms_name_the_same_shapes(scenes):
    for scene in scenes:
        assert scene.instances("violet discs") == scene.instances("purple circle")
        assert scene.instances("white spot") == scene.instances("white dot")
        assert scene.instances("things") == scene.instances("object")


def test_every_word_of_a_phrase_is_in_the_vocabulary(scenes):
    assert {"a", "red", "white", "star", "stars", "crosses", "discs", "dot", "shapes", "violet"} <= set(VOCABULARY)
    assert "dog" not in VOCABULARY


@pytest.fixture(scope="module")
def pillow_scenes() -> list[Scene]:
    random = np.random.default_rng(6)
    return [draw_with_pillow(random) for _ in range(25)]


def test_the_other_renderer_matches_its_ground_truth(pillow_scenes):
    """Identify colors by hue, and kinds by how much of its box an upright shape fills."""
    sides = [side for scene in pillow_scenes for side in scene.image.shape[:2]]
    assert min(sides) >= 300
    assert max(sides) <= 1600
    assert max(sides) > 3 * min(sides)
    shapes = [(scene, shape) for scene in pillow_scenes for shape in scene.shapes]
    assert {shape.kind for _, shape in shapes} == set(KINDS)
    assert {shape.color for _, shape in shapes} == set(COLORS)
    for scene, shape in shapes:
        hue, *_ = colorsys.rgb_to_hsv(*(np.median(scene.image[shape.whole.mask], axis=0) / 255))
        nearest = min(HUES, key=lambda name: abs((360 * hue - HUES[name][0] + 180) % 360 - 180))
        assert nearest == shape.color
    fullest = {kind: max(filled(shape) for _, shape in shapes if shape.kind == kind) for kind in KINDS}
    assert fullest["square"] > 0.98
    assert fullest["circle"] == pytest.approx(np.pi / 4, abs=0.02)
    assert 0.4 < fullest["cross"] < 0.7
    assert 0.45 < fullest["triangle"] < 0.55
    assert 0.25 < fullest["star"] < 0.4


def filled(shape):
    x1, y1, x2, y2 = shape.whole.box
    return shape.whole.mask.sum() / ((x2 - x1) * (y2 - y1))


def test_shapes_from_the_other_renderer_do_not_overlap(pillow_scenes):
    for scene in pillow_scenes:
        assert sum(shape.whole.coverage for shape in scene.shapes).max() <= 1
