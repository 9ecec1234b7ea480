"""What is drawn in Ikomia Studio: which graphics are prompts, and what happens to the others."""

import logging
import math

import numpy as np
import pytest
from ikomia import core, dataprocess

from sam3_engine.errors import PromptError
from sam3_engine.prompt_strings import ChosenPrompt, Drawing, PromptStrings
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from testbed.plugin import Plugin

WIDTH, HEIGHT = 640, 427
BOX = (60.0, 80.0, 300.0, 330.0)
OTHER_BOX = (350.0, 100.0, 520.0, 390.0)
POINT = (210.0, 150.0)

NO_AREA = [(30, 20, 10, 40), (10, 40, 30, 20), (10, 20, 10, 40), (10, 20, 30, 20), (0, 0, 0, 0), (math.nan, 20, 30, 40)]
BOXES_OUTSIDE = [
    (WIDTH, 5, WIDTH + 9, 9),
    (5, HEIGHT, 9, HEIGHT + 9),
    (-9, 5, 0, 9),
    (5, -9, 9, 0),
    (-math.inf, 1, 2, 3),
]
POINTS_OUTSIDE = [(WIDTH, 5), (5, HEIGHT), (-0.5, 5), (5, -0.5), (0, 1e300), (math.nan, 1), (5, math.inf)]
FLAWED = [
    *((Drawing((box,)), "shape without area") for box in NO_AREA),
    *((Drawing((box,)), "shape outside the image") for box in BOXES_OUTSIDE),
    *((Drawing(points=(point,)), "point outside the image") for point in POINTS_OUTSIDE),
    (Drawing(others=("polyline",)), "polyline"),
    (Drawing(others=("text",)), "text"),
]


def choose(input_text="", drawing=None, **typed):
    """Return the prompt chosen from these parameters and a drawing."""
    return PromptStrings(input_text, **typed).choose(drawing)


def chosen_prompt(*typed, **named):
    return choose(*typed, **named).prompt


def refusal(function, *arguments, **named) -> str:
    """Return the message of the error that ``function`` raises for its arguments."""
    with pytest.raises(PromptError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def logged_warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def drawn_together(*drawings):
    """Return everything in some drawings as one drawing on the image."""
    parts = ((drawing.rectangles, drawing.points, drawing.others) for drawing in drawings)
    rectangles, points, others = (sum(of_one_kind, ()) for of_one_kind in zip(*parts, strict=True))
    return Drawing(rectangles, points, others, WIDTH, HEIGHT)


@pytest.mark.parametrize(("flawed", "name"), FLAWED)
def test_drawn_graphics_that_cannot_be_used_are_skipped_with_one_warning(caplog, flawed, name):
    for good in (Drawing((BOX,)), Drawing((BOX, OTHER_BOX)), Drawing(points=(POINT,)), Drawing((BOX,), (POINT,))):
        wanted = choose(drawing=good).prompt
        for drawing in (drawn_together(good, flawed), drawn_together(flawed, good)):
            caplog.clear()
            chosen = choose(drawing=drawing)
            assert chosen.fit(WIDTH, HEIGHT).prompt == wanted
            several = len(good.rectangles) > 1 and drawing.points
            assert chosen.unused == (("drawn points",) if several else (f"drawn {name}",))
            (warning,) = logged_warnings(caplog)
            assert several or warning.startswith(f"Ignored: drawn {name}. Rectangles, ellipses and polygons")


@pytest.mark.parametrize(("flawed", "name"), FLAWED)
def test_if_nothing_that_is_drawn_can_be_used_the_error_says_what_to_draw(flawed, name):
    for labels in ("", "1"):
        message = refusal(choose, input_box_label=labels, drawing=drawn_together(flawed))
        assert message == (
            f"drawn graphics = '{name}': this cannot be used; "
            "draw a rectangle, ellipse or polygon around an object, or a point on it."
        )


def test_skipped_graphics_of_a_kind_are_counted():
    drawing = Drawing((BOX, NO_AREA[0], NO_AREA[1]), (), ("text", "polyline", "text"))
    assert choose(drawing=drawing).unused == ("drawn shape without area (2)", "drawn text (2)", "drawn polyline")


@pytest.mark.parametrize(("flawed", "name"), FLAWED)
def test_graphics_that_cannot_be_used_are_no_error_beside_a_typed_prompt(flawed, name):
    for typed in ({"input_text": "shoe"}, {"input_box": str(BOX)}, {"input_point": str(POINT)}):
        assert choose(**typed, drawing=drawn_together(flawed)) == ChosenPrompt(
            chosen_prompt(**typed), unused=("drawn graphics",)
        )


@pytest.mark.parametrize("bad", [NO_AREA[0], BOXES_OUTSIDE[0]])
def test_the_label_of_a_skipped_rectangle_is_skipped_with_it(bad):
    drawing = drawn_together(Drawing((BOX, bad, OTHER_BOX)))
    wanted = ConceptPrompt((), (BOX, OTHER_BOX), (1, 0))
    assert chosen_prompt(input_box_label="[1, 1, 0]", drawing=drawing) == wanted
    assert chosen_prompt(input_box_label="[1, 0, 0]", drawing=drawing) == wanted
    assert chosen_prompt(input_box_label="1", drawing=drawing).box_labels == (1, 1)
    assert chosen_prompt(input_box_label="[1, 0]", drawing=drawing) == wanted  # only those that the user sees
    assert "1 label for 2 boxes" in refusal(choose, input_box_label="[1]", drawing=drawing)
    assert "4 labels for 2 boxes" in refusal(choose, input_box_label="[1, 0, 1, 0]", drawing=drawing)


def test_if_the_only_positive_rectangle_is_skipped_a_phrase_is_needed():
    drawing = drawn_together(Drawing((NO_AREA[0], BOX)))
    message = refusal(choose, input_box_label="[1, 0]", drawing=drawing)
    assert message == (
        "input_box_label = '[1, 0]': no shape that can be used is a positive example (skipped: shape without area); "
        "draw a rectangle, ellipse or polygon around an object, or a point on it."
    )
    assert chosen_prompt("shoe", input_box_label="[1, 0]", drawing=drawing) == ConceptPrompt(("shoe",), (BOX,), (0,))
    chosen = choose("shoe", input_box_label="1", drawing=drawn_together(Drawing((NO_AREA[0],))))
    assert (chosen.prompt, chosen.unused) == (ConceptPrompt(("shoe",)), ("drawn shape without area",))


def test_the_label_of_a_skipped_point_is_skipped_with_it():
    drawing = drawn_together(Drawing(points=(POINT, POINTS_OUTSIDE[0], (7.0, 8.0))))
    prompt = chosen_prompt(input_point_label="[1, 1, 0]", drawing=drawing)
    assert prompt == GeometricPrompt((), (POINT, (7.0, 8.0)), (1, 0))
    assert chosen_prompt(input_point_label="[1, 0]", drawing=drawing) == prompt
    assert "1 label for 2 points" in refusal(choose, input_point_label="[1]", drawing=drawing)


def test_points_are_foreground_if_the_only_rectangle_is_skipped():
    drawing = drawn_together(Drawing((NO_AREA[0],), (POINT,)))
    assert chosen_prompt(drawing=drawing) == GeometricPrompt((), (POINT,), (1,))


# --- in Ikomia


def drawn(*items):
    graphics = dataprocess.CGraphicsInput()
    graphics.set_items(list(items))
    return graphics


def rectangle(x1, y1, x2, y2):
    return core.CGraphicsRectangle(x1, y1, x2 - x1, y2 - y1)


def ellipse(x1, y1, x2, y2):
    return core.CGraphicsEllipse(x1, y1, x2 - x1, y2 - y1)


def diamond(x1, y1, x2, y2):
    """Return the corners of a diamond with these bounds."""
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    return [core.CPointF(x, y) for x, y in ((middle_x, y1), (x2, middle_y), (middle_x, y2), (x1, middle_y))]


def point(x, y):
    return core.CGraphicsPoint(core.CPointF(x, y))


def polyline(x1, y1, x2, y2):
    return core.CGraphicsPolyline(diamond(x1, y1, x2, y2))


@pytest.fixture
def run(small_checkpoint, photograph):
    """Run the plugin on a photograph with what is drawn and typed; return its outputs after the image."""
    plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)

    def run_with(*items, **typed):
        plugin.algorithm.set_input(drawn(*items), 1)
        return plugin.segment(photograph, **typed)

    return run_with


DRAWINGS = {
    "a rectangle": ([rectangle(*BOX)], {"input_box": BOX}),
    "rectangles": ([rectangle(*BOX), rectangle(*OTHER_BOX)], {"input_box": [BOX, OTHER_BOX]}),
    "a rectangle drawn upwards": ([core.CGraphicsRectangle(300, 330, -240, -250)], {"input_box": BOX}),
    "an ellipse": ([ellipse(*BOX)], {"input_box": BOX}),
    "an ellipse drawn upwards": ([core.CGraphicsEllipse(300, 330, -240, -250)], {"input_box": BOX}),
    "a polygon": ([core.CGraphicsPolygon(diamond(*BOX))], {"input_box": BOX}),
    "a polygon with a hole": (
        [core.CGraphicsComplexPolygon(diamond(*BOX), [diamond(170, 190, 190, 210)])],
        {"input_box": BOX},
    ),
    "a rectangle and an ellipse": ([rectangle(*BOX), ellipse(*OTHER_BOX)], {"input_box": [BOX, OTHER_BOX]}),
    "a point": ([point(*POINT)], {"input_point": [POINT], "input_point_label": [1]}),
    "points": (
        [point(*POINT), point(500.5, 300.25)],
        {"input_point": [POINT, [500.5, 300.25]], "input_point_label": [1, 1]},
    ),
    "a point and a rectangle": (
        [point(*POINT), rectangle(*BOX)],
        {"input_box": BOX, "input_point": [POINT], "input_point_label": [0]},
    ),
    "an ellipse and a point": (
        [ellipse(*BOX), point(*POINT)],
        {"input_box": BOX, "input_point": [POINT], "input_point_label": [0]},
    ),
}


@pytest.mark.parametrize("percent", [100, 50])
@pytest.mark.parametrize("kind", DRAWINGS)
def test_drawn_graphics_mean_the_same_as_typed_coordinates(run, kind, percent):
    items, typed = DRAWINGS[kind]
    wanted = [(output.get_mask(), output.description) for output in run(**typed, input_size_percent=percent)]
    outputs = run(*items, input_size_percent=percent)
    assert len(outputs) == len(wanted)
    for output, (mask, description) in zip(outputs, wanted, strict=True):
        assert np.array_equal(output.get_mask(), mask)
        assert output.description == description


def test_typed_prompts_take_precedence_over_drawn_ones_and_the_description_says_so(run):
    (typed,) = run(input_point=[POINT])
    mask, description = typed.get_mask(), typed.description
    (output,) = run(rectangle(5, 5, 100, 100), input_point=[POINT])
    assert np.array_equal(output.get_mask(), mask)
    assert output.description == f"{description}; not used: drawn graphics"


def test_a_phrase_that_finds_nothing_tells_that_it_hides_what_is_drawn(run):
    mask, objects = run(rectangle(*BOX), input_text="cat", confidence_threshold=1, instance_output=True)
    assert mask.description == "no cat found; not used: drawn graphics"
    assert objects.description == "0 object(s)"


SKIPPED = {
    "a click with the rectangle tool": (rectangle(5, 5, 5, 5), "drawn shape without area"),
    "a rectangle off the image": (rectangle(700, 500, 800, 600), "drawn shape outside the image"),
    "a point off the image": (point(-5, 10), "drawn point outside the image"),
    "a polyline": (polyline(5, 5, 50, 50), "drawn polyline"),
    "a text": (core.CGraphicsText("note", 5, 5), "drawn text"),
}


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_flawed_item_does_not_fail_the_run_and_the_good_ones_count(run, caplog, kind):
    item, name = SKIPPED[kind]
    (wanted,) = run(rectangle(*BOX))
    mask, description = wanted.get_mask(), wanted.description
    (output,) = run(item, rectangle(*BOX))
    assert np.array_equal(output.get_mask(), mask)
    assert output.description == f"{description}; not used: {name}"
    assert [warning.startswith(f"Ignored: {name}.") for warning in logged_warnings(caplog)] == [True]


@pytest.mark.parametrize("kind", SKIPPED)
def test_a_drawing_without_anything_usable_is_an_error_about_drawing(run, kind):
    item, name = SKIPPED[kind]
    run(rectangle(*BOX))
    with pytest.raises(RuntimeError) as caught:
        run(item)
    assert str(caught.value).startswith(
        f"drawn graphics = '{name.removeprefix('drawn ')}': this cannot be used; draw a"
    )
    (output,) = run(rectangle(*BOX))
    assert output.get_mask().any()


def test_drawn_ellipses_and_polygons_can_be_examples(run):
    (typed,) = run(input_box=[BOX, OTHER_BOX], input_box_label=[1, 0], confidence_threshold=0)
    mask = typed.get_mask()
    items = [ellipse(*BOX), polyline(5, 5, 50, 50), core.CGraphicsPolygon(diamond(*OTHER_BOX))]
    (output,) = run(*items, input_box_label=[1, 0], confidence_threshold=0)
    assert np.array_equal(output.get_mask(), mask)
    assert output.description.endswith("; not used: drawn polyline")
