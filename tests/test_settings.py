"""The parameters: their defaults, their conversion from and to strings, and what importing them loads."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sam3_engine.devices import cuda_present
from sam3_engine.errors import PromptError, quote
from sam3_engine.options import Options
from sam3_engine.prompt_strings import ChosenPrompt, Drawing
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.settings import MASK_OUTPUTS, Settings

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULTS = {
    "input_size_percent": 100,
    "confidence_threshold": 0.5,
    "iou_threshold": 1.0,
    "max_detections": 0,
    "min_area_percent": 0.0,
    "max_area_percent": 100.0,
    "min_region_percent": 0.0,
    "tile_size": 0,
    "tile_overlap": 0.2,
    "points_per_side": 0,
    "predicted_iou_threshold": 0.7,
    "stability_score_threshold": 0.9,
    "input_text": "",
    "input_box": "",
    "input_box_label": "",
    "input_point": "",
    "input_point_label": "",
    "multimask_output": False,
    "mask_output": "instances",
    "instance_output": False,
    "model_input_size": 0,
    "embedding_cache_folder": "",
    "model_weight_file": "",
}
FREE_TEXT = ["input_text", "input_box", "input_box_label", "input_point", "input_point_label"]
FREE_TEXT += ["embedding_cache_folder", "model_weight_file"]
CHANGED = Settings(
    cuda=False,
    input_size_percent=37,
    confidence_threshold=0.25,
    iou_threshold=0.75,
    max_detections=7,
    min_area_percent=0.25,
    max_area_percent=62.5,
    min_region_percent=1.5,
    tile_size=672,
    tile_overlap=0.5,
    points_per_side=24,
    predicted_iou_threshold=0.875,
    stability_score_threshold=0.625,
    input_text="red shoe",
    input_box="[[1, 2, 3, 4]]",
    input_box_label="[1]",
    input_point="((5, 6),)",
    input_point_label="(1,)",
    multimask_output=True,
    mask_output="classes",
    instance_output=True,
    model_input_size=504,
    embedding_cache_folder="/cache",
    model_weight_file="/weights/sam3.pt",
)


def test_the_defaults_match_the_table():
    assert dataclasses.asdict(Settings()) == {"cuda": cuda_present(), **DEFAULTS}


def test_the_defaults_have_the_types_of_the_table():
    types = {field.name: type(getattr(Settings(), field.name)) for field in dataclasses.fields(Settings)}
    assert types == {"cuda": bool, **{name: type(value) for name, value in DEFAULTS.items()}}


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CHANGED.input_text = "other"


# --- updates


@pytest.mark.parametrize("name", CHANGED.to_strings())
def test_a_partial_map_keeps_the_other_settings(name):
    updated = Settings().updated({name: CHANGED.to_strings()[name]})
    assert updated == dataclasses.replace(Settings(), **{name: getattr(CHANGED, name)})


@pytest.mark.parametrize("strings", [{}, {"unknown": "1"}, {"": ""}, {"Input_Text": "shoe", "prompt": "[["}])
def test_unknown_names_are_ignored(strings):
    assert CHANGED.updated(strings) == CHANGED
    assert CHANGED.updated({**strings, "input_text": "hat"}) == dataclasses.replace(CHANGED, input_text="hat")


def test_an_update_does_not_change_the_original():
    original = dataclasses.replace(CHANGED)
    original.updated(Settings().to_strings())
    assert original == CHANGED


@pytest.mark.parametrize("name", ["cuda", "multimask_output", "instance_output"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(True), True),
        (str(False), False),
        (str(1), True),
        (str(0), False),
        ("true", True),
        ("FALSE", False),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("off", False),
        (" True\n", True),
    ],
)
def test_booleans_are_read_in_every_spelling(name, text, value):
    assert getattr(Settings().updated({name: text}), name) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(1), 1),
        (str(50), 50),
        (str(100), 100),
        (str(50.0), 50),
        ("007", 7),
        ("+5", 5),
        ("1e2", 100),
        (" 50\n", 50),
    ],
)
def test_percentages_are_read_in_every_spelling(text, value):
    percent = Settings().updated({"input_size_percent": text}).input_size_percent
    assert percent == value
    assert type(percent) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (str(0), 0),
        (str(1), 1),
        (str(0.0), 0),
        (str(1.0), 1),
        (str(0.1 + 0.2), 0.1 + 0.2),
        (str(1e-05), 1e-05),
        (".5", 0.5),
        ("5E-1", 0.5),
        (" 0.25\t", 0.25),
    ],
)
@pytest.mark.parametrize("name", ["confidence_threshold", "iou_threshold"])
def test_thresholds_are_read_in_every_spelling(name, text, value):
    threshold = getattr(Settings().updated({name: text}), name)
    assert threshold == value
    assert type(threshold) is float


MALFORMED = ["", " ", "abc", "None", "nan", "NaN", "inf", "-inf", "Infinity", "1e999", "-1e999", "0x1", "1,5", "50%"]
MALFORMED += ["[1]", "(1,)", "1 2", "1.2.3", "True", "False", "--1", "1e", "½", "9" * 5000, "x" * 100_000]


def names(texts: list[str]) -> list[str]:
    return [text if len(text) <= 20 else f"{text[:3]}..." for text in texts]


def assert_refused(name: str, text: str, expected: str) -> None:
    good = {other: value for other, value in Settings().to_strings().items() if other != name}
    before = dataclasses.replace(CHANGED)
    with pytest.raises(ValueError, match=name) as caught:
        CHANGED.updated({**good, name: text})
    assert before == CHANGED
    message = str(caught.value)
    opening = quote(text) if len(text) <= 80 else quote(text[:60])[:-1]
    assert message.startswith(f"{name} = {opening}")
    assert expected in message
    assert len(message) < 300


PERCENT_OUT_OF_RANGE = ["0", "0.5", "-1", "-50", "101", "100.5", "50.5", "100.0000001", "1e3", "0.99999999"]


@pytest.mark.parametrize("text", PERCENT_OUT_OF_RANGE + MALFORMED, ids=names(PERCENT_OUT_OF_RANGE + MALFORMED))
def test_invalid_percentages_are_refused(text):
    assert_refused("input_size_percent", text, "expected a whole number from 1 to 100")


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("112", 112), ("2016", 2016), (" 504\n", 504), ("336.0", 336)])
def test_model_input_sizes_are_read_in_every_spelling(text, value):
    size = Settings().updated({"model_input_size": text}).model_input_size
    assert size == value
    assert type(size) is int


SIZES_OUT_OF_RANGE = ["1", "111", "2017", "-112", "504.5", "1e6", "0.1"]


@pytest.mark.parametrize("text", SIZES_OUT_OF_RANGE + MALFORMED, ids=names(SIZES_OUT_OF_RANGE + MALFORMED))
def test_invalid_model_input_sizes_are_refused(text):
    assert_refused("model_input_size", text, "expected 0, or a whole number from 112 to 2016")


THRESHOLD_OUT_OF_RANGE = ["-0.1", "-1", "1.1", "2", "50", "1.0000000001", "-1e-300", "1e300"]


@pytest.mark.parametrize("text", THRESHOLD_OUT_OF_RANGE + MALFORMED, ids=names(THRESHOLD_OUT_OF_RANGE + MALFORMED))
@pytest.mark.parametrize("name", ["confidence_threshold", "iou_threshold"])
def test_invalid_thresholds_are_refused(name, text):
    assert_refused(name, text, "expected a number from 0 to 1")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("1", 1), (" 300\n", 300), ("5.0", 5), ("1e3", 1000), ("2147483647", 2**31 - 1)]
)
def test_numbers_of_detections_are_read_in_every_spelling(text, value):
    count = Settings().updated({"max_detections": text}).max_detections
    assert count == value
    assert type(count) is int


NO_COUNT = ["-1", "0.5", "1.5", "-1e300"]


@pytest.mark.parametrize("text", NO_COUNT + MALFORMED, ids=names(NO_COUNT + MALFORMED))
def test_invalid_numbers_of_detections_are_refused(text):
    assert_refused("max_detections", text, "expected a whole number, 0 or more")


@pytest.mark.parametrize("text", ["classes", "Classes", " CLASSES\n"])
def test_mask_outputs_are_read_in_every_spelling(text):
    assert Settings().updated({"mask_output": text}).mask_output == "classes"
    assert Settings().updated({"mask_output": text}).to_strings()["mask_output"] == "classes"


NO_MASK_OUTPUT = ["class", "instance", "semantic", "'classes'", "instances, classes", "0", *MALFORMED]


@pytest.mark.parametrize("text", NO_MASK_OUTPUT, ids=names(NO_MASK_OUTPUT))
def test_invalid_mask_outputs_are_refused(text):
    assert_refused("mask_output", text, "expected instances or classes")


SHARES = ["min_area_percent", "max_area_percent", "min_region_percent"]


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("100", 100), ("1.5", 1.5), (".1", 0.1), ("1e-3", 0.001), (" 50\n", 50)]
)
@pytest.mark.parametrize("name", SHARES)
def test_shares_are_read_in_every_spelling(name, text, value):
    percent = getattr(Settings().updated({name: text}), name)
    assert percent == value
    assert type(percent) is float


SHARE_OUT_OF_RANGE = ["-1", "-0.001", "100.001", "101", "1e3"]


@pytest.mark.parametrize("text", SHARE_OUT_OF_RANGE + MALFORMED, ids=names(SHARE_OUT_OF_RANGE + MALFORMED))
@pytest.mark.parametrize("name", SHARES)
def test_invalid_shares_are_refused(name, text):
    assert_refused(name, text, "expected a number from 0 to 100")


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("64", 64), ("672.0", 672), (" 1e3\n", 1000), ("0.0", 0)])
def test_tile_sizes_are_read_in_every_spelling(text, value):
    size = Settings().updated({"tile_size": text}).tile_size
    assert (size, type(size)) == (value, int)


NO_TILE_SIZE = ["1", "63", "63.9", "64.5", "-64", "inf", "1e400", *MALFORMED]


@pytest.mark.parametrize("text", NO_TILE_SIZE, ids=names(NO_TILE_SIZE))
def test_invalid_tile_sizes_are_refused(text):
    assert_refused("tile_size", text, "expected 0, or a whole number, 64 or more")


NO_OVERLAP = ["-0.1", "0.91", "1", "20", *MALFORMED]


@pytest.mark.parametrize("text", NO_OVERLAP, ids=names(NO_OVERLAP))
def test_invalid_overlaps_are_refused(text):
    assert_refused("tile_overlap", text, "expected a number from 0 to 0.9")


NO_GRID = ["-1", "65", "3.5", "0.5", *MALFORMED]


@pytest.mark.parametrize("text", NO_GRID, ids=names(NO_GRID))
def test_invalid_grids_are_refused(text):
    assert_refused("points_per_side", text, "expected a whole number from 0 to 64")


def test_the_steps_of_a_run_are_counted_before_it():
    tiles = Settings(input_text="shoe", tile_size=672)
    assert tiles.count_steps(3000, 2000) == 24 + 1
    assert tiles.count_steps(672, 672) == 1
    assert Settings(input_text="shoe").count_steps(3000, 2000) == 1
    assert Settings(input_box="[[1, 2, 3, 4]]", tile_size=672).count_steps(3000, 2000) == 1
    assert Settings(tile_size=672).count_steps(3000, 2000) == 1
    everything = Settings(points_per_side=32)
    assert everything.count_steps(3000, 2000) == 1 + 32
    assert everything.count_steps(3000, 2000, drawn=True) == 1
    assert Settings(points_per_side=32, tile_size=672).count_steps(3000, 2000) == (24 + 1) * (1 + 32)
    assert Settings(points_per_side=32, input_text="shoe").count_steps(3000, 2000) == 1
    assert Settings(points_per_side=32, input_point="[[1, 2]]").count_steps(3000, 2000) == 1


def test_areas_may_be_set_one_after_the_other_but_a_minimum_above_the_maximum_is_refused_on_use():
    between = Settings().updated({"min_area_percent": "30"}).updated({"max_area_percent": "20.5"})
    expected = "min_area_percent = 30.0, max_area_percent = 20.5: expected a minimum that is not above the maximum."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        _ = between.options
    for strings in ({"min_area_percent": "20.5"}, {"max_area_percent": "30"}):
        _ = between.updated(strings).options


def test_the_errors_of_a_run_are_known_before_it(tmp_path):
    missing = str(tmp_path / "sam3.pt")
    settings = Settings(
        min_area_percent=30.0, max_area_percent=20.5, input_point="[[1, 2", input_text="shoe", model_weight_file=missing
    )
    expected = "expected a list of points [[x, y], ...] in pixels."
    assert settings.errors() == {
        "input_point": f"input_point = '[[1, 2': this cannot be read; {expected}",
        "min_area_percent": (
            "min_area_percent = 30.0, max_area_percent = 20.5: expected a minimum that is not above the maximum."
        ),
        "model_weight_file": (f"model_weight_file = '{missing}': there is no such file; expected a SAM 3 checkpoint."),
    }
    (tmp_path / "sam3.pt").touch()
    for there in ("", missing, f'"{missing}"', "facebook/sam3", "nobody/knows/model.safetensors"):
        assert Settings(model_weight_file=there).errors() == {}
    folder = Settings(model_weight_file=str(tmp_path)).errors()["model_weight_file"]
    assert folder.endswith(f"this is a folder; expected a SAM 3 checkpoint, such as '{missing}'.")


def test_the_options_of_the_engine_are_those_of_the_settings():
    assert CHANGED.options == Options(
        confidence_threshold=0.25,
        iou_threshold=0.75,
        max_detections=7,
        min_area_percent=0.25,
        max_area_percent=62.5,
        multimask=True,
        size_percent=37,
        min_region_percent=1.5,
        tile_size=672,
        tile_overlap=0.5,
        predicted_iou_threshold=0.875,
        stability_score_threshold=0.625,
    )
    assert Settings().options == Options()


NOT_A_BOOLEAN = [text for text in MALFORMED if text not in ("True", "False")]
NOT_A_BOOLEAN += ["2", "-1", "10", "maybe", "TrueFalse", "True,", "'True'", "[True]"]


@pytest.mark.parametrize("name", ["cuda", "multimask_output", "instance_output"])
@pytest.mark.parametrize("text", NOT_A_BOOLEAN, ids=names(NOT_A_BOOLEAN))
def test_invalid_booleans_are_refused(name, text):
    assert_refused(name, text, "expected True or False")


# --- round trips through strings

ANY_SETTINGS = st.builds(
    Settings,
    cuda=st.booleans(),
    input_size_percent=st.integers(1, 100),
    confidence_threshold=st.floats(0, 1, allow_subnormal=False),
    iou_threshold=st.floats(0, 1, allow_subnormal=False),
    max_detections=st.integers(0, 2**31 - 1),
    min_area_percent=st.floats(0, 100, allow_subnormal=False),
    max_area_percent=st.floats(0, 100, allow_subnormal=False),
    min_region_percent=st.floats(0, 100, allow_subnormal=False),
    tile_size=st.just(0) | st.integers(64, 2**31 - 1),
    tile_overlap=st.floats(0, 0.9, allow_subnormal=False),
    points_per_side=st.integers(0, 64),
    predicted_iou_threshold=st.floats(0, 1, allow_subnormal=False),
    stability_score_threshold=st.floats(0, 1, allow_subnormal=False),
    mask_output=st.sampled_from(MASK_OUTPUTS),
    multimask_output=st.booleans(),
    instance_output=st.booleans(),
    model_input_size=st.just(0) | st.integers(112, 2016),
    **dict.fromkeys(FREE_TEXT, st.text() | st.sampled_from(["[[1, 2]]", "((5, 6),)", " ", "[[", "a\nb", "None"])),
)


@hypothesis_settings(max_examples=200)
@given(settings=ANY_SETTINGS, others=ANY_SETTINGS)
def test_settings_survive_a_round_trip_through_strings(settings, others):
    strings = settings.to_strings()
    assert others.updated(strings) == settings
    assert set(strings) == {"cuda", *DEFAULTS}
    assert all(type(text) is str for text in strings.values())


@pytest.mark.parametrize("name", FREE_TEXT)
@pytest.mark.parametrize(
    "text", ["", "  [[1, 2\n", "((5, 6),)", "NaN", "{", "shoe ", "\u00a0é𝐀", "x" * 100_000], ids=ascii
)
def test_texts_are_kept_as_typed(name, text):
    updated = CHANGED.updated({name: text})
    assert getattr(updated, name) == text
    assert updated.to_strings()[name] == text


# --- prompts


def test_the_prompt_is_parsed_from_the_strings():
    expected = GeometricPrompt(boxes=((1, 2, 3, 4),), points=((5, 6),), point_labels=(0,))
    strings = {"input_box": "[1, 2, 3, 4]", "input_point": "((5, 6),)", "input_point_label": "0"}
    assert Settings().updated(strings).prompt().prompt == expected
    assert Settings().updated({**strings, "input_text": " red  shoe"}).prompt().prompt == ConceptPrompt(("red shoe",))


def test_drawn_graphics_are_the_prompt_if_nothing_is_typed():
    drawing = Drawing(points=((5, 6),))
    assert Settings().prompt(drawing) == ChosenPrompt(GeometricPrompt((), ((5, 6),), (1,)), drawn=True)
    assert Settings().prompt() is None


@pytest.mark.parametrize(
    ("name", "text"),
    [("input_box", "[[1, 2, 3]]"), ("input_point", "[[NaN, 1]]"), ("input_point_label", "2")],
)
def test_a_malformed_prompt_is_refused_on_use(name, text):
    settings = Settings().updated({"input_point": "[5, 6]", name: text})
    with pytest.raises(PromptError, match=f"^{name} = "):
        settings.prompt()
    assert settings.updated(dict.fromkeys(("input_point", name), "")).prompt() is None


# --- imports


@pytest.mark.parametrize(
    "module", ["settings", "prompts", "prompt_strings", "weights", "images", "errors", "fitting", "options"]
)
def test_importing_loads_neither_torch_nor_sam3(module):
    code = f"""
import sys
import sam3_engine.{module}
if "sam3_engine.settings" in sys.modules:
    sys.modules["sam3_engine.settings"].Settings().updated({{"input_point": "[1, 2]"}}).prompt()
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    loaded = set(finished.stdout.split())
    assert "sam3_engine" in loaded
    assert not loaded & {"torch", "torchvision", "sam3"}
