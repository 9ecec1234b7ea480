"""Typed and drawn prompts: which are accepted, which are refused with which message, and which one is used."""

import dataclasses
import gc
import json
import math
import re
import statistics
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3_engine.errors import PromptError, message_of, quote
from sam3_engine.fitting import FittedPrompt, fit_prompt
from sam3_engine.host_state import ignore_warnings
from sam3_engine.prompt_strings import (
    ChosenPrompt,
    Drawing,
    PromptStrings,
    is_blank,
    parse_box_labels,
    parse_boxes,
    parse_phrases,
    parse_point_labels,
    parse_points,
)
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt, is_plain_phrase

PARSERS = {
    "input_box": parse_boxes,
    "input_box_label": parse_box_labels,
    "input_point": parse_points,
    "input_point_label": parse_point_labels,
}
LABELS = ["input_box_label", "input_point_label"]
EXPECTED = {
    "input_box": "expected a list of boxes [[x1, y1, x2, y2], ...]",
    "input_box_label": "expected a list with one label per box, 1 for a positive and 0 for a negative example",
    "input_point": "expected a list of points [[x, y], ...]",
    "input_point_label": "expected a list with one label per point, 1 for foreground and 0 for background",
}
BOX = (10.0, 20.0, 30.0, 40.0)
OTHER_BOX = (1.0, 2.0, 3.0, 4.0)
POINT = (5.0, 6.0)
DRAWN = Drawing((OTHER_BOX,))
WIDTH, HEIGHT = 640, 427
LONG = 100_000


def choose(input_text="", input_box="", input_box_label="", input_point="", input_point_label="", drawing=None):
    """Return the prompt chosen from these parameters, or None if there is nothing to segment."""
    return PromptStrings(input_text, input_box, input_box_label, input_point, input_point_label).choose(drawing)


def chosen_prompt(*typed, **named):
    chosen = choose(*typed, **named)
    return chosen and chosen.prompt


def fit(drawing=None, **typed) -> FittedPrompt:
    return choose(**typed, drawing=drawing).fit(WIDTH, HEIGHT)


def phrases_of(text: str) -> tuple[str, ...]:
    """Return the phrases of a typed ``input_text``, validated and without duplicates."""
    prompt = chosen_prompt(text)
    return prompt.phrases if prompt else ()


def refusal(function, *arguments, **named) -> str:
    """Return the message of the error that ``function`` raises for its arguments."""
    with pytest.raises(PromptError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def assert_quotes(message: str, parameter: str, value: str) -> None:
    """Check that the message starts with the parameter and its value, shortened if it is long."""
    opening = quote(value) if len(value) <= 80 else quote(value[:60])[:-1]
    assert message.startswith(f"{parameter} = {opening}")
    assert len(message) < 600


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["['a' if 1else 2]", "[0x1for x in 'a']", "['\\d']"])
def test_parsing_a_text_raises_no_python_warnings(text):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        refusal(parse_phrases, text)
    assert shown == []


def test_reading_a_text_waits_for_no_one_and_changes_no_warnings_filter():
    """The panel reads on every key press, also while another thread loads a model with warnings off."""
    with ignore_warnings():
        filters = list(warnings.filters)
        read = []
        texts = ("[[42", "[(1, 2, 3, 4)]", "['red shoe', 'hat']")
        thread = threading.Thread(
            target=lambda: read.extend((PromptStrings(text, text).errors(), list(warnings.filters)) for text in texts)
        )
        thread.start()
        thread.join(60)
        assert len(read) == len(texts)
        assert all(seen == filters for _, seen in read)


def logged_warnings(caplog) -> list[str]:
    assert {record.name for record in caplog.records} <= {"sam3_engine.prompt_strings"}
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# --- spellings that are accepted


@pytest.mark.parametrize(
    "text",
    [
        "[[10, 20, 30, 40]]",
        "[10, 20, 30, 40]",
        "[[10,20,30,40]]",
        "[[10.0, 2e1, 30.00, 4.0E+1]]",
        "[(10, 20, 30, 40)]",
        "((10, 20, 30, 40),)",
        "([10, 20, 30, 40],)",
        "(10, 20, 30, 40)",
        "\n [\t[10 ,20,\r\n30, 40 ]]  \n",
        "[[10, 20, 30, 40],]",
        "[10., 20, 30, 40,]",
        "(\n10, 20, 30, 40)",
        "( ( 10, 20, 30, 40 ) ,)",
        "[[np.float64(10.0), np.int64(20), np.float32(30.0), np.uint8(40)]]",
    ],
)
def test_one_box_is_read_in_every_spelling(text):
    assert parse_boxes(text) == (BOX,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8])
def test_numpy_numbers_are_read(dtype):
    box, labels = np.array(BOX, dtype), np.array([1, 0], dtype)
    assert parse_boxes(str([list(box)])) == parse_boxes(str((tuple(box),))) == parse_boxes(str(box.tolist())) == (BOX,)
    assert parse_point_labels(str(list(labels))) == (1, 0)


@pytest.mark.parametrize("number", ["np.float64(nan)", "np.float64([1])", "np.float64(1", "np.load(1)", "np.float64()"])
def test_other_numpy_expressions_are_refused(number):
    assert_quotes(refusal(parse_boxes, f"[[1, 2, 3, {number}]]"), "input_box", f"[[1, 2, 3, {number}]]")


@pytest.mark.parametrize(
    "text",
    [
        "[[10, 20, 30, 40], [1, 2, 3, 4]]",
        "((10, 20, 30, 40), (1, 2, 3, 4))",
        "[(10, 20, 30, 40), [1.0, 2.0, 3.0, 4.0]]",
        "([10, 20, 30, 40], (1, 2, 3, 4))",
    ],
)
def test_several_boxes_keep_their_order(text):
    assert parse_boxes(text) == (BOX, OTHER_BOX)


@pytest.mark.parametrize(
    "text",
    ["[[5, 6]]", "[5, 6]", "[5.0, 6.0]", "(5, 6)", "((5, 6),)", "[(5, 6)]", "([5, 6],)", " [ [ 5 , 6 ] ]\n", "(5, 6,)"],
)
def test_one_point_is_read_in_every_spelling(text):
    assert parse_points(text) == (POINT,)


@pytest.mark.parametrize("text", ["[[5, 6], [-1, 0.5]]", "((5, 6), (-1, 0.5))", "[(5, 6), [-1, 5e-1]]"])
def test_several_points_keep_their_order(text):
    assert parse_points(text) == (POINT, (-1.0, 0.5))


@pytest.mark.parametrize("parameter", LABELS)
@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("1", (1,)),
        ("0", (0,)),
        (" 1\n", (1,)),
        ("1.0", (1,)),
        ("(1)", (1,)),
        ("[1]", (1,)),
        ("(0,)", (0,)),
        ("[1, 0, 1]", (1, 0, 1)),
        ("(1, 0, 1)", (1, 0, 1)),
        ("[ 1.0,\n0.0 ]", (1, 0)),
        ("[True, False]", (1, 0)),
        ("[true, false]", (1, 0)),
        ("True", (1,)),
        ("[np.True_, np.False_]", (1, 0)),
        ("(np.int64(1), np.uint8(0))", (1, 0)),
    ],
)
def test_labels_are_read_in_every_spelling(parameter, text, labels):
    assert PARSERS[parameter](text) == labels
    assert all(type(label) is int for label in PARSERS[parameter](text))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("shoe", ("shoe",)),
        ("shoe, person", ("shoe, person",)),
        ("shoes (red) [worn]", ("shoes (red) [worn]",)),
        ("(red) shoe", ("(red) shoe",)),
        ("('shoe')", ("('shoe')",)),
        ("(shoe, person)", ("(shoe, person)",)),
        ('"shoe"', ("shoe",)),
        ("'shoe'", ("shoe",)),
        (" “red shoe”\n", ("red shoe",)),
        ("‘shoe’", ("shoe",)),
        ("„shoe“", ("shoe",)),
        ("«shoe»", ("shoe",)),
        ("`shoe`", ("shoe",)),
        ("'driver's seat'", ("driver's seat",)),
        ('"[shoe]"', ("[shoe]",)),
        ('""', ()),
        ("' '", ()),
        # quotation marks around parts of a phrase
        ('"shoe", "person"', ('"shoe", "person"',)),
        ("'red' and 'blue'", ("'red' and 'blue'",)),
        ("the “red” shoe", ("the “red” shoe",)),
        ('"shoe', ('"shoe',)),
        ("shoe'", ("shoe'",)),
        ("“shoe'", ("“shoe'",)),
        ('"', ('"',)),
        ('["\\"shoe\\""]', ('"shoe"',)),
        ("[np.str_('shoe'), np.str_(\"driver's seat\")]", ("shoe", "driver's seat")),
        ("a {shoe}", ("a {shoe}",)),
        ('"{shoe}"', ("{shoe}",)),
        ('{"shoe": 0.3, "person": 0.6}', ("shoe", "person")),
        ("{}", ()),
        (" { } ", ()),
        ('["shoe", "person"]', ("shoe", "person")),
        ('["shoe", "person",]', ("shoe", "person")),
        ("['shoe', 'person']", ("shoe", "person")),
        ("('shoe', 'person')", ("shoe", "person")),
        ("('shoe',)", ("shoe",)),
        ('\n[ "shoe" ,\t"person"\n]', ("shoe", "person")),
        ('["  red\\n shoe "]', ("red shoe",)),
        ("[\"driver's seat\", 'wheel']", ("driver's seat", "wheel")),
        ('["shoe, left", "[]"]', ("shoe, left", "[]")),
        ('["caf\\u00e9"]', ("café",)),
        ('["shoe", "person", "shoe ", " shoe"]', ("shoe", "person")),
        ("[]", ()),
        ("()", ()),
        (" [ ] ", ()),
        (" \n", ()),
        ("", ()),
    ],
)
def test_phrases_are_read_in_every_spelling(text, phrases):
    assert phrases_of(text) == phrases


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[shoe]", "this cannot be read"),
        ("['red shoe' 'hat']", "this cannot be read"),
        ('["red shoe"\n "hat"]', "this cannot be read"),
        ('["shoe", "person"', "this cannot be read"),
        ('["shoe" "person",]]', "this cannot be read"),
        ("['shoe\\d']", "this cannot be read"),
        ("[f'shoe']", "this cannot be read"),
        ("[__import__('os')]", "this cannot be read"),
        ("[" * LONG, "this cannot be read"),
        ("[" * 150 + "]" * 150, "is not a phrase"),
        ("[1, 2]", "'1' is not a phrase"),
        ('["shoe", null]', "'None' is not a phrase"),
        ("['shoe', ['person']]", "is not a phrase"),
        ("(1, 2)", "'1' is not a phrase"),
        ("((1, 2), 'shoe')", "is not a phrase"),
        ('["shoe", " "]', "it has a blank phrase"),
        ('["shoe", ""]', "it has a blank phrase"),
        (str(["shoe", "x" * 1001]), "expected a noun phrase of at most 1000 characters"),
    ],
    ids=lambda text: text[:30],
)
def test_invalid_lists_of_phrases_are_refused(text, reason):
    message = refusal(choose, text)
    assert_quotes(message, "input_text", text)
    assert reason in message
    assert "expected a noun phrase" in message


@pytest.mark.parametrize(
    ("text", "phrases", "thresholds"),
    [
        ('{"shoe": 0.3, "person": 0.6}', ("shoe", "person"), (0.3, 0.6)),
        ("{'shoe': 0.3, 'person': 0.6}", ("shoe", "person"), (0.3, 0.6)),
        ("{\"driver's seat\": 0, 'wheel': 1,}", ("driver's seat", "wheel"), (0.0, 1.0)),
        ('\n{ "  red\\n shoe " :\t5e-1 }', ("red shoe",), (0.5,)),
        (str({"shoe": np.float32(0.25), np.str_("hat"): np.float64(0.1)}), ("shoe", "hat"), (0.25, 0.1)),
        ("{np.str_('shoe'): np.int64(1)}", ("shoe",), (1.0,)),
        ('{"shoe": 0.3, "hat": null}', ("shoe", "hat"), (0.3, None)),
        ("{'shoe': None, 'hat': 0.3}", ("shoe", "hat"), (None, 0.3)),
        ("{'shoe': None}", ("shoe",), ()),
        ('{"shoe": 0.3, " shoe": 0.3, "hat": 0.4}', ("shoe", "hat"), (0.3, 0.4)),
        ('["shoe", "hat"]', ("shoe", "hat"), ()),
        ("shoe", ("shoe",), ()),
    ],
)
def test_each_phrase_may_have_a_threshold(text, phrases, thresholds):
    prompt = chosen_prompt(text)
    assert prompt == ConceptPrompt(phrases, confidence_thresholds=thresholds)
    assert (prompt.phrases, prompt.confidence_thresholds) == (phrases, thresholds)
    assert all(type(threshold) is float for threshold in prompt.confidence_thresholds if threshold is not None)
    with_example = chosen_prompt(text, str(BOX), "[1]") if len(phrases) == 1 else None
    assert with_example is None or with_example == ConceptPrompt(phrases, (BOX,), (1,), thresholds)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "this cannot be read"),
        ("{shoe}", "this cannot be read"),
        ("{shoe: 0.3}", "this cannot be read"),
        ('{"shoe"}', "this cannot be read"),
        ('{"shoe": 0.3', "this cannot be read"),
        ('{"shoe": 0.3}}', "this cannot be read"),
        ('{"shoe": 0.3}, {"hat": 0.5}', "this cannot be read"),
        ('{"shoe": 0.3} and a hat', "this cannot be read"),
        ('{"shoe": 0,3}', "this cannot be read"),
        ('{"red shoe" "hat": 0.3}', "this cannot be read"),
        ("{'shoe', 'hat'}", "this cannot be read"),
        ("{**{'shoe': 0.3}}", "this cannot be read"),
        ("{'shoe': 0.3 for _ in 'x'}", "this cannot be read"),
        ("{__import__('os'): 0.3}", "this cannot be read"),
        ('{"a":' * (LONG // 6), "this cannot be read"),
        ('{"shoe": 1.01}', "'1.01' is not a number from 0 to 1"),
        ('{"hat": 0.5, "shoe": -0.1}', "'-0.1' is not a number from 0 to 1"),
        ('{"shoe": 50}', "'50' is not a number from 0 to 1"),
        ('{"shoe": NaN}', "'nan' is not a number from 0 to 1"),
        ('{"shoe": 1e999}', "'inf' is not a number from 0 to 1"),
        ('{"shoe": "0.3"}', "'0.3' is not a number from 0 to 1"),
        ('{"shoe": true}', "'True' is not a number from 0 to 1"),
        ('{"shoe": [0.3]}', "'[0.3]' is not a number from 0 to 1"),
        ('{"shoe": {"left": 0.3}}', "is not a number from 0 to 1"),
        ("{1: 0.3}", "'1' is not a phrase"),
        ("{None: 0.3}", "'None' is not a phrase"),
        ("{('shoe', 'hat'): 0.3}", "is not a phrase"),
        ('{"shoe": 0.3, "hat": 0.5, "shoe": 0.6}', "'shoe' has more than one threshold"),
        ("{'shoe': 0.3, 'shoe': 0.3}", "'shoe' has more than one threshold"),
        ("{np.str_('shoe'): 0.3, 'shoe': 0.4}", "'shoe' has more than one threshold"),
    ],
    ids=lambda text: text[:30],
)
def test_invalid_thresholds_of_phrases_are_refused(text, reason):
    message = refusal(choose, text)
    assert_quotes(message, "input_text", text)
    assert reason in message
    assert 'expected a number from 0 to 1 for each noun phrase, {"shoe": 0.3, "person": 0.6}' in message
    assert PromptStrings(text).errors() == {"input_text": message}
    assert PromptStrings(text, "[[1, 2, 3, 4], [5, 6, 7, 8]]").count_objects() == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"shoe": 0.3, " ": 0.6}', "it has a blank phrase"),
        (str({"x" * 1001: 0.3}), "expected a noun phrase of at most 1000 characters"),
        ('{"shoe": 0.3, "shoe ": 0.6}', "'shoe' has more than one threshold"),
        ('{"shoe": null, " shoe": 0.6}', "'shoe' has more than one threshold"),
    ],
)
def test_invalid_phrases_with_thresholds_are_refused(text, reason):
    message = refusal(choose, text)
    assert_quotes(message, "input_text", text)
    assert reason in message
    assert PromptStrings(text).errors() == {"input_text": message}


@pytest.mark.parametrize("text", ["", "{}", '""', "[]"])
def test_boxes_take_effect_beside_a_text_without_phrases(text):
    boxes = "[[1, 2, 3, 4], [5, 6, 7, 8]]"
    assert chosen_prompt(text, boxes) == GeometricPrompt(((1, 2, 3, 4), (5, 6, 7, 8)))
    assert PromptStrings(text, boxes).count_objects() == 2


WORD = st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs", "Z", "C"]), min_size=1)


@given(thresholds=st.dictionaries(WORD, st.floats(0, 1, allow_subnormal=False), min_size=1))
def test_thresholds_survive_a_round_trip_through_str_and_json(thresholds):
    for text in (str(thresholds), json.dumps(thresholds)):
        prompt = chosen_prompt(text)
        assert dict(zip(prompt.phrases, prompt.confidence_thresholds, strict=True)) == thresholds


@pytest.mark.parametrize(
    ("phrases", "thresholds", "kept"),
    [
        (["shoe", "hat"], [0.3, 0.6], (0.3, 0.6)),
        (["shoe", "hat"], np.array([0.25, 1], np.float32), (0.25, 1.0)),
        (["shoe", "hat"], torch.tensor([0.25, 0.5]), (0.25, 0.5)),
        (["shoe", "hat"], [None, np.float64(0.3)], (None, 0.3)),
        (["shoe", "hat"], [None, None], ()),
        (["shoe", " shoe", "hat"], [0.3, 0.3, 0], (0.3, 0.0)),
    ],
)
def test_the_engine_takes_a_threshold_for_each_phrase(phrases, thresholds, kept):
    prompt = ConceptPrompt(phrases, confidence_thresholds=thresholds)
    assert prompt.confidence_thresholds == kept
    assert prompt.phrases == ("shoe", "hat")
    assert all(type(threshold) is float for threshold in kept if threshold is not None)


@pytest.mark.parametrize(
    ("phrases", "thresholds", "reason"),
    [
        (("shoe",), (1.5,), "'1.5' is not a number from 0 to 1"),
        (("shoe",), ("0.5",), "'0.5' is not a number from 0 to 1"),
        (("shoe",), (True,), "'True' is not a number from 0 to 1"),
        (("shoe",), (math.nan,), "'nan' is not a number from 0 to 1"),
        (("shoe", "hat"), (0.5,), "1 threshold for 2 phrases"),
        (("shoe",), (0.5, 0.6), "2 thresholds for 1 phrase;"),
        ((), (0.5,), "1 threshold for 0 phrases"),
        (("shoe", "shoe"), (0.5, 0.6), "'shoe' has more than one threshold"),
    ],
)
def test_the_engine_refuses_invalid_thresholds_of_phrases(phrases, thresholds, reason):
    message = refusal(ConceptPrompt, phrases, (BOX,), (1,), thresholds)
    assert message.startswith(f"confidence_thresholds = {quote(list(thresholds))}: {reason}")
    assert "expected none, or one number from 0 to 1 per phrase" in message


@pytest.mark.parametrize("phrases", ["shoe", {"shoe": 0.3}])
def test_phrases_that_are_not_a_list_are_an_error(phrases):
    with pytest.raises(TypeError, match="expected a tuple of strings"):
        ConceptPrompt(phrases)


@given(phrases=st.lists(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"]), min_size=1)))
def test_phrases_survive_a_round_trip_through_str(phrases):
    phrases = [" ".join(phrase.split()) for phrase in phrases]
    phrases = list(dict.fromkeys(phrase for phrase in phrases if phrase))
    assert phrases_of(str(phrases)) == phrases_of(str(tuple(phrases))) == tuple(phrases)


@pytest.mark.parametrize("parse", PARSERS.values())
@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u00a0", "[]", "()", " [ ] ", "(\n)"])
def test_blank_texts_and_empty_lists_give_no_prompt(parse, text):
    assert parse(text) == ()


def test_coordinates_are_floats():
    assert all(type(number) is float for number in (*parse_boxes("[1, 2, 3, 4]")[0], *parse_points("[1, 2]")[0]))


# --- refused prompts


@pytest.mark.parametrize("parameter", PARSERS)
@pytest.mark.parametrize(
    "text",
    [
        "[[1, 2",
        "1, 2]",
        "1, 0",
        "[[1 2]]",
        "[,]",
        "[1,, 2]",
        "[[1, 2, 3, 4]],",
        "[1, 2], [3, 4]",
        "(1, 2), (3, 4)",
        "[[1, 2]] [[3, 4]]",
        "[[1, 2}]",
        "{1, 2}",
        "{",
        "shoe",
        "None",
        "np.True",
        "nan",
        "[NaN, 1]",
        "NaN",
        "Infinity",
        "[[-Infinity, 2]]",
        "[inf, 1]",
        "[0x10, 2]",
        "[1_0, 2]",
        "[01, 2]",
        "['1', '2']",
        "'",
        '"',
        "\\",
        "[[1, 2]",
        "[1, 2]]",
        "((1, 2)",
        "(1, 2))",
        "[(1, 2])",
        "[1, 2)",
        "(1, 2]",
        "([)]",
        ")(",
        "][",
        "()()",
        "(,)",
        "( ,)",
        "[1, (,)]",
        "(1,,)",
        "[array([1, 2])]",
        "[np.array(1.0), 2]",
        "[1, 2] # (the corner)",
        "[" * LONG,
        "(" * LONG,
        "[" * (LONG // 2) + "]" * (LONG // 2),
        "(" * (LONG // 2) + ")" * (LONG // 2),
        "9" * LONG,
    ],
    ids=lambda text: text if len(text) <= 80 else f"{text[:3]}...{text[-3:]}",
)
def test_unreadable_texts_are_refused(parameter, text):
    message = refusal(PARSERS[parameter], text)
    assert_quotes(message, parameter, text)
    assert EXPECTED[parameter] in message


ARITY = {"input_box": 4, "input_point": 2}


@pytest.mark.parametrize("parameter", ARITY)
@pytest.mark.parametrize(
    "template",
    [
        "null",
        "true",
        "1",
        "-2.5",
        '"text"',
        "{{}}",
        '{{"x": {row}}}',
        "[{{}}]",
        "[null]",
        "[true]",
        '["{row}"]',
        "[[]]",
        "[[], {row}]",
        "[{row}, []]",
        "[{row}, 5]",
        "[5, {row}]",
        "[{row}, null]",
        "[[{row}]]",
        "(({row},),)",
        "[{row}, [{row}]]",
        "[{short}]",
        "{short}",
        "[{long}]",
        "{long}",
        "({long},)",
        "[{row}, {short}]",
        "[{row}, {long}]",
    ],
)
def test_wrong_nesting_or_arity_is_refused(parameter, template):
    numbers = [1, 2, 3, 4, 5][: ARITY[parameter] + 1]
    text = template.format(row=numbers[:-1], short=numbers[:-2], long=numbers)
    message = refusal(PARSERS[parameter], text)
    assert_quotes(message, parameter, text)
    assert EXPECTED[parameter] in message


NOT_A_NUMBER = ["null", '"4"', '""', "{}", "1e999", "-1e999", "1" + "0" * 400, "-1" + "0" * 400]
BOOLEANS = ["true", "false", "True", "np.True_"]


@pytest.mark.parametrize("parameter", ARITY)
@pytest.mark.parametrize("template", ["[{}]", "[[{}]]", "(({},),)"])
@pytest.mark.parametrize(
    "item", [*NOT_A_NUMBER, *BOOLEANS, "[4]", "NaN", "Infinity", "-Infinity"], ids=lambda item: item[:12]
)
def test_coordinates_that_are_not_finite_numbers_are_refused(parameter, template, item):
    numbers = [item, "20", "30", "40"][: ARITY[parameter]]
    text = template.format(", ".join(numbers))
    message = refusal(PARSERS[parameter], text)
    assert_quotes(message, parameter, text)
    assert EXPECTED[parameter] in message


@pytest.mark.parametrize("parameter", LABELS)
@pytest.mark.parametrize("template", ["{}", "[{}]", "[1, {}]", "({}, 0)"])
@pytest.mark.parametrize(
    "label",
    ["2", "-1", "0.5", "1.0000001", "[1]", "[]", *NOT_A_NUMBER, "NaN", "Infinity"],
    ids=lambda label: label[:12],
)
def test_labels_other_than_0_and_1_are_refused(parameter, template, label):
    text = template.format(label)
    if text in ("[1]", "[]"):
        text = f"[{text}]"  # on their own, these are lists of labels
    message = refusal(PARSERS[parameter], text)
    assert_quotes(message, parameter, text)
    assert EXPECTED[parameter] in message


@pytest.mark.parametrize(
    ("input_box", "input_point", "input_point_label", "counts"),
    [
        ("", "[5, 6]", "[1, 1]", (2, 1)),
        ("", "[[5, 6], [7, 8]]", "[1]", (1, 2)),
        ("", "((5, 6), (7, 8))", "(1, 0, 1)", (3, 2)),
        ("[1, 2, 3, 4]", "[5, 6]", "[1, 1]", (2, 1)),
    ],
)
def test_the_number_of_labels_must_match_the_points(input_box, input_point, input_point_label, counts):
    message = refusal(
        choose, input_box=input_box, input_point=input_point, input_point_label=input_point_label, drawing=DRAWN
    )
    assert_quotes(message, "input_point_label", input_point_label)
    labels, points = counts
    assert re.search(rf"{labels} labels? for {points} points?;", message)
    assert EXPECTED["input_point_label"] in message


NO_AREA = [(30, 20, 10, 40), (10, 40, 30, 20), (10, 20, 10, 40), (10, 20, 30, 20), (0, 0, 0, 0), (0.5, 2, -0.5, 3)]


@pytest.mark.parametrize("box", NO_AREA)
def test_a_typed_box_without_area_is_refused(box):
    message = refusal(choose, input_box=str([BOX, box]))
    assert_quotes(message, "input_box", str(list(box)))
    assert EXPECTED["input_box"] in message
    assert "with x1 < x2 and y1 < y2" in message


OUTSIDE = [(WIDTH, 5), (5, HEIGHT), (-0.5, 5), (5, -0.5), (-3, -3), (10**6, 0), (0, 1e300)]


@pytest.mark.parametrize("point", OUTSIDE)
def test_a_typed_point_outside_the_image_is_refused(point):
    message = refusal(choose(input_point=str([POINT, point])).fit, WIDTH, HEIGHT)
    assert message.startswith("input_point = '[")
    assert f"expected 0 <= x < {WIDTH} and 0 <= y < {HEIGHT}" in message


@pytest.mark.parametrize("point", [(0, 0), (-0.0, 0), (WIDTH - 1, HEIGHT - 1), (WIDTH - 0.01, HEIGHT - 0.01)])
def test_a_point_on_an_edge_pixel_is_inside_the_image(point):
    assert fit(input_point=str(point)).prompt == chosen_prompt(input_point=str(point))


BOXES_OUTSIDE = [
    (WIDTH, 5, WIDTH + 9, 9),
    (5, HEIGHT, 9, HEIGHT + 9),
    (-9, 5, 0, 9),
    (5, -9, 9, 0),
    (-9, -9, -1, -1),
    (700, 500, 800, 600),
]


@pytest.mark.parametrize("box", BOXES_OUTSIDE)
def test_a_typed_box_entirely_outside_the_image_is_refused(box):
    message = refusal(choose(input_box=str([BOX, box])).fit, WIDTH, HEIGHT)
    assert_quotes(message, "input_box", str(list(box)))
    assert f"expected a box that overlaps [0, 0, {WIDTH}, {HEIGHT}]" in message


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (BOX, BOX),
        ((0, 0, WIDTH, HEIGHT), (0, 0, WIDTH, HEIGHT)),
        ((-5, 20, 30, 40), (0, 20, 30, 40)),
        ((10, -5, 30, 40), (10, 0, 30, 40)),
        ((10, 20, 700, 40), (10, 20, WIDTH, 40)),
        ((10, 20, 30, 500.5), (10, 20, 30, HEIGHT)),
        ((-1e300, -1e300, 1e300, 1e300), (0, 0, WIDTH, HEIGHT)),
    ],
)
def test_a_box_partly_outside_the_image_is_clipped(box, clipped):
    assert fit(input_box=str(box)).prompt == GeometricPrompt(boxes=(clipped,))
    assert fit(drawing=Drawing((box,))).prompt == GeometricPrompt(boxes=(clipped,))


@pytest.mark.parametrize(
    ("input_box", "input_point", "typed"),
    [
        ("", "[1234567, 5]", "1234567"),
        ("", "[639.0000004, 500]", "639.0000004"),
        ("[1234567, 5, 1234569, 9]", "", "1234569"),
        ("[100.0000004, 5, 100.0000001, 9]", "", "100.0000001"),
    ],
)
def test_refused_coordinates_are_quoted_in_full(input_box, input_point, typed):
    message = refusal(lambda: fit(input_box=input_box, input_point=input_point))
    assert typed in message


def test_a_phrase_of_more_than_1000_characters_is_refused():
    assert chosen_prompt("x" * 1000) == ConceptPrompt(("x" * 1000,))
    message = refusal(choose, "x" * 1001)
    assert_quotes(message, "input_text", "x" * 1001)
    assert "(1001 characters)" in message
    assert "expected a noun phrase of at most 1000 characters" in message


def test_a_long_value_is_quoted_in_part_with_its_length():
    assert quote("[1, 2]") == "'[1, 2]'"
    assert quote([1, 2]) == "'[1, 2]'"
    assert quote("x" * 80) == repr("x" * 80)
    assert quote("x" * 81) == repr("x" * 80 + "… (81 characters)")
    assert quote("two\nlines") == r"'two\nlines'"


def test_backslashes_are_quoted_as_they_are():
    assert quote(r"C:\new\sam3.pt") == r"'C:\new\sam3.pt'"
    assert quote(r"\\server\share") == r"'\\server\share'"
    assert quote("C:\\a\n\\") == r"'C:\a\n\'"


def test_the_message_of_an_error_names_a_file_as_it_is():
    error = FileNotFoundError(2, "No such file or directory", r"C:\new\sam3.pt")
    assert message_of(error) == r"[Errno 2] No such file or directory: 'C:\new\sam3.pt'"
    assert quote(error) == rf'"{message_of(error)}"'
    assert message_of(OSError(2, "refused", "a\\b", None, "c\\d")) == r"[Errno 2] refused: 'a\b' -> 'c\d'"
    assert message_of(ValueError(r"two \\ backslashes")) == r"two \\ backslashes"


def test_a_prompt_error_is_a_value_error():
    assert issubclass(PromptError, ValueError)


# --- which prompt is used

TYPED_BOX, TYPED_POINT = str(list(BOX)), str(list(POINT))
GEOMETRY = GeometricPrompt(boxes=(BOX,), points=(POINT,), point_labels=(1,))


@pytest.mark.parametrize(
    ("text", "box", "point", "drawn", "chosen", "left_aside"),
    [
        ("shoe", "", "", None, ConceptPrompt(("shoe",)), set()),
        ("shoe", " ", "\n", Drawing(), ConceptPrompt(("shoe",)), set()),
        ("shoe", "[]", "()", None, ConceptPrompt(("shoe",)), set()),
        ("shoe", TYPED_BOX, "", None, ConceptPrompt(("shoe",)), {"input_box"}),
        ("shoe", "", TYPED_POINT, None, ConceptPrompt(("shoe",)), {"input_point"}),
        ("shoe", "", "", DRAWN, ConceptPrompt(("shoe",)), {"drawn"}),
        ("shoe", TYPED_BOX, TYPED_POINT, None, ConceptPrompt(("shoe",)), {"input_box", "input_point"}),
        ("shoe", TYPED_BOX, TYPED_POINT, DRAWN, ConceptPrompt(("shoe",)), {"input_box", "input_point", "drawn"}),
        ("shoe", "not a box", "[[1]]", None, ConceptPrompt(("shoe",)), {"input_box", "input_point"}),
        ("", TYPED_BOX, "", None, GeometricPrompt(boxes=(BOX,)), set()),
        ("", "", TYPED_POINT, None, GeometricPrompt(points=(POINT,), point_labels=(1,)), set()),
        ("", TYPED_BOX, TYPED_POINT, None, GEOMETRY, set()),
        (" \n\t", TYPED_BOX, TYPED_POINT, Drawing(), GEOMETRY, set()),
        ("", TYPED_BOX, "", DRAWN, GeometricPrompt(boxes=(BOX,)), {"drawn"}),
        ("", "", TYPED_POINT, DRAWN, GeometricPrompt(points=(POINT,), point_labels=(1,)), {"drawn"}),
        ("", "", "", DRAWN, GeometricPrompt(boxes=(OTHER_BOX,)), set()),
        (" ", "[]", "()", DRAWN, GeometricPrompt(boxes=(OTHER_BOX,)), set()),
        ("", "", "", None, None, set()),
        (" ", "[]", "\n", Drawing(), None, set()),
    ],
)
def test_text_takes_precedence_over_typed_over_drawn_prompts(caplog, text, box, point, drawn, chosen, left_aside):
    assert chosen_prompt(text, box, input_point=point, drawing=drawn) == chosen
    warnings = logged_warnings(caplog)
    assert len(warnings) == (1 if left_aside else 0)
    named = {name for name in ("input_box", "input_point", "drawn") if any(name in warning for warning in warnings)}
    # if typed boxes or points are used, the warning may name them too
    assert left_aside <= named
    assert named == left_aside or not text


def test_drawn_graphics_of_several_kinds_are_ignored_with_one_warning(caplog):
    drawing = Drawing((BOX, OTHER_BOX), (POINT,))
    assert chosen_prompt("shoe", drawing=drawing) == ConceptPrompt(("shoe",))
    assert len(logged_warnings(caplog)) == 1


def test_without_input_there_is_no_prompt(caplog):
    assert choose() is None
    assert logged_warnings(caplog) == []


@pytest.mark.parametrize(
    ("text", "phrase"), [("shoe", "shoe"), ("  red\n shoe\t", "red shoe"), ("chaussure d’été", "chaussure d’été")]
)
def test_whitespace_in_a_phrase_is_normalized(text, phrase):
    assert chosen_prompt(text) == ConceptPrompt((phrase,))


def test_several_phrases_make_one_prompt(caplog):
    assert chosen_prompt('["shoe", "red  hat"]') == ConceptPrompt(("shoe", "red hat"))
    assert chosen_prompt("[]", TYPED_BOX) == GeometricPrompt(boxes=(BOX,))
    assert logged_warnings(caplog) == []


TWO_BOXES = str([list(BOX), list(OTHER_BOX)])
DRAWN_BOTH = Drawing((OTHER_BOX,), (POINT,))


@pytest.mark.parametrize(
    ("typed", "drawn", "chosen", "left_aside"),
    [
        ({"input_box": TYPED_BOX, "input_box_label": "1"}, None, ConceptPrompt((), (BOX,), (1,)), []),
        (
            {"input_box": TWO_BOXES, "input_box_label": "[1, 0]"},
            None,
            ConceptPrompt((), (BOX, OTHER_BOX), (1, 0)),
            [],
        ),
        (
            {"input_text": "shoe", "input_box": TYPED_BOX, "input_box_label": "[0]"},
            None,
            ConceptPrompt(("shoe",), (BOX,), (0,)),
            [],
        ),
        ({"input_box": TYPED_BOX, "input_box_label": "[]"}, None, GeometricPrompt((BOX,)), []),
        # rectangles can also be examples
        ({"input_box_label": "1"}, DRAWN, ConceptPrompt((), (OTHER_BOX,), (1,)), []),
        ({"input_text": "shoe", "input_box_label": "0"}, DRAWN, ConceptPrompt(("shoe",), (OTHER_BOX,), (0,)), []),
        ({"input_box_label": "1"}, DRAWN_BOTH, ConceptPrompt((), (OTHER_BOX,), (1,)), ["drawn points"]),
        ({"input_box": TYPED_BOX, "input_box_label": "1"}, DRAWN, ConceptPrompt((), (BOX,), (1,)), ["drawn graphics"]),
        (
            {"input_box": TYPED_BOX, "input_box_label": "1", "input_point": TYPED_POINT, "input_point_label": "[2"},
            None,
            ConceptPrompt((), (BOX,), (1,)),
            ["input_point"],
        ),
    ],
)
def test_labels_turn_boxes_into_examples(caplog, typed, drawn, chosen, left_aside):
    assert chosen_prompt(**typed, drawing=drawn) == chosen
    warnings = logged_warnings(caplog)
    assert len(warnings) == len(left_aside)
    for warning, name in zip(warnings, left_aside, strict=True):
        assert warning.startswith(f"input_box_label is set, so boxes are examples. Ignored: {name}")


@pytest.mark.parametrize(
    ("typed", "drawn", "parameter", "reason"),
    [
        ({"input_box": TYPED_BOX, "input_box_label": "[1, 0]"}, None, "input_box_label", "2 labels for 1 box"),
        ({"input_box": TWO_BOXES, "input_box_label": "[1]"}, None, "input_box_label", "1 label for 2 boxes"),
        ({"input_box_label": "[1, 0]"}, DRAWN, "input_box_label", "2 labels for 1 box"),
        ({"input_box": TYPED_BOX, "input_box_label": "0"}, None, "input_box_label", "there is no positive example"),
        (
            {"input_box": TWO_BOXES, "input_box_label": "[0, 0]"},
            None,
            "input_box_label",
            "expected at least one label 1, or a phrase",
        ),
        (
            {"input_text": '["shoe", "hat"]', "input_box": TYPED_BOX, "input_box_label": "1"},
            None,
            "input_text",
            "example boxes work with one phrase or none, not with 2",
        ),
        ({"input_text": "shoe", "input_box": "[1, 2", "input_box_label": "1"}, None, "input_box", "cannot be read"),
        (
            {"input_text": "shoe", "input_box": TYPED_BOX, "input_box_label": "2"},
            None,
            "input_box_label",
            "'2' is not a label",
        ),
    ],
)
def test_invalid_examples_are_refused(typed, drawn, parameter, reason):
    message = refusal(choose, **typed, drawing=drawn)
    assert message.startswith(f"{parameter} = ")
    assert reason in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConceptPrompt(), "there is nothing to segment"),
        (lambda: ConceptPrompt(boxes=(BOX,)), "box_labels = '[]': 0 labels for 1 box"),
        (lambda: ConceptPrompt(boxes=(BOX,), box_labels=(0,)), "box_labels = '[0]': there is no positive example"),
        (lambda: ConceptPrompt(("shoe", "hat"), (BOX,), (1,)), "example boxes work with one phrase or none"),
        (lambda: ConceptPrompt(("shoe",), box_labels=(1,)), "1 label for 0 boxes"),
        (
            lambda: ConceptPrompt(boxes=((30, 20, 10, 40),), box_labels=(1,)),
            "boxes = '[30, 20, 10, 40]': the box",
        ),
        (lambda: ConceptPrompt(("shoe", " ")), "it has a blank phrase"),
        (lambda: ConceptPrompt(("x" * 1001,)), "at most 1000 characters"),
        (lambda: ConceptPrompt((5,)), "'5' is not a phrase"),
        (lambda: GeometricPrompt(), "there is nothing to segment"),
        (lambda: GeometricPrompt(points=(POINT,)), "point_labels = '[]': 0 labels for 1 point"),
        (lambda: GeometricPrompt(points=(POINT,), point_labels=(2,)), "'2' is not a label"),
        (lambda: GeometricPrompt((BOX, OTHER_BOX), (POINT,), (1,)), "points refine a single box, not 2 boxes"),
        (lambda: GeometricPrompt(boxes=((1, 2, 3),)), "there are 3 numbers, not 4"),
        (lambda: GeometricPrompt(boxes=BOX), "boxes = '10.0': this is not a list of 4 numbers"),
        (lambda: GeometricPrompt(boxes=((1, 2, 3, math.nan),)), "'nan' is not a finite number"),
        (lambda: GeometricPrompt(points=((1, math.inf),), point_labels=(1,)), "'inf' is not a finite number"),
        (lambda: GeometricPrompt(points=(("1", 2),), point_labels=(1,)), "'1' is not a finite number"),
    ],
)
def test_invalid_prompts_are_refused_on_creation_with_the_engine_argument_names(make, message):
    refused = refusal(make)
    assert message in refused
    assert "input_" not in refused


def test_prompts_accept_lists_and_arrays():
    made = GeometricPrompt(np.array([BOX]), [list(POINT)], np.array([1]))
    assert made == GeometricPrompt((BOX,), (POINT,), (1,))
    assert hash(made) == hash(GeometricPrompt((BOX,), (POINT,), (1,)))
    assert ConceptPrompt(["shoe", " red  hat", "shoe"]) == ConceptPrompt(("shoe", "red hat"))


@pytest.mark.parametrize("convert", [np.array, torch.tensor, list], ids=["NumPy", "PyTorch", "lists of scalars"])
def test_prompts_accept_whole_arrays_and_tensors_and_those_in_lists(convert):
    points, labels = [POINT, (7.0, 8.0)], [True, False]
    wanted = GeometricPrompt((BOX,), tuple(points), (1, 0))
    assert GeometricPrompt(convert([BOX]), convert(points), convert(labels)) == wanted
    assert GeometricPrompt([convert(BOX)], list(map(convert, points)), list(convert(labels))) == wanted
    assert ConceptPrompt(np.array(["shoe"]), convert([BOX]), convert(labels[:1])) == ConceptPrompt(
        ("shoe",), (BOX,), (1,)
    )
    assert all(type(label) is int for label in GeometricPrompt((), convert(points), convert(labels)).point_labels)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_booleans_are_labels_but_not_coordinates(convert):
    assert "'True' is not a finite number" in refusal(GeometricPrompt, (), convert([[True, False]]), (1,))


@pytest.mark.parametrize(
    ("box", "labels", "wanted"),
    [
        (TWO_BOXES, "1", ConceptPrompt((), (BOX, OTHER_BOX), (1, 1))),
        (TWO_BOXES, " 1.0 ", ConceptPrompt((), (BOX, OTHER_BOX), (1, 1))),
        (TYPED_BOX, "1", ConceptPrompt((), (BOX,), (1,))),
    ],
)
def test_a_bare_label_is_that_of_every_box(box, labels, wanted):
    assert chosen_prompt(input_box=box, input_box_label=labels) == wanted
    assert chosen_prompt(input_box_label=labels, drawing=Drawing(wanted.boxes)) == wanted


def test_a_bare_0_counts_against_the_phrase_for_every_box():
    wanted = ConceptPrompt(("shoe",), (BOX, OTHER_BOX), (0, 0))
    assert chosen_prompt("shoe", TWO_BOXES, "0") == wanted


@pytest.mark.parametrize("label", [0, 1])
def test_a_bare_label_is_that_of_every_point(label):
    prompt = chosen_prompt(input_point="[[5, 6], [7, 8]]", input_point_label=str(label))
    assert prompt.point_labels == (label, label)
    drawing = Drawing(points=(POINT, (7.0, 8.0), (9.0, 9.0)))
    assert chosen_prompt(input_point_label=str(label), drawing=drawing).point_labels == (label,) * 3


# --- what is set but not used


NO_BOXES, NO_POINTS = "input_box_label (no boxes)", "input_point_label (no points)"


@pytest.mark.parametrize("labels", ["1", "[7]", "[1, 0", "shoe"])
@pytest.mark.parametrize(
    ("name", "others", "drawing", "prompt", "unused"),
    [
        ("input_box_label", {"input_text": "shoe"}, None, ConceptPrompt(("shoe",)), NO_BOXES),
        ("input_point_label", {"input_text": "shoe"}, None, ConceptPrompt(("shoe",)), NO_POINTS),
        ("input_box_label", {"input_point": TYPED_POINT}, None, GeometricPrompt((), (POINT,), (1,)), NO_BOXES),
        ("input_point_label", {"input_box": TYPED_BOX}, None, GeometricPrompt((BOX,)), NO_POINTS),
        ("input_box_label", {}, Drawing(points=(POINT,)), GeometricPrompt((), (POINT,), (1,)), NO_BOXES),
        ("input_point_label", {}, DRAWN, GeometricPrompt((OTHER_BOX,)), NO_POINTS),
    ],
)
def test_labels_without_boxes_or_points_are_ignored_even_if_they_are_invalid(
    caplog, labels, name, others, drawing, prompt, unused
):
    chosen = choose(**{name: labels}, **others, drawing=drawing)
    assert (chosen.prompt, chosen.unused) == (prompt, (unused,))
    assert logged_warnings(caplog) == [f"Ignored: {unused}."]


@pytest.mark.parametrize("labels", ["1", "[1, 0]", "[7]"])
def test_labels_alone_are_nothing_to_segment(caplog, labels):
    strings = PromptStrings(input_box_label=labels, input_point_label=labels)
    assert strings.choose() is None
    assert strings.labels_without_use() == (NO_BOXES, NO_POINTS)
    assert logged_warnings(caplog) == [f"Ignored: {NO_BOXES}, {NO_POINTS}."]


def test_points_that_several_boxes_exclude_may_be_invalid(caplog):
    chosen = choose(input_box=TWO_BOXES, input_point="[[1, 2", input_point_label="[7]")
    assert chosen == ChosenPrompt(GeometricPrompt((BOX, OTHER_BOX)), unused=("input_point",))
    assert len(logged_warnings(caplog)) == 1


EVERYTHING_TYPED = {"input_text": "shoe", "input_box": "[", "input_point": "["}


@pytest.mark.parametrize(
    ("typed", "drawing", "unused"),
    [
        ({"input_text": "shoe"}, None, ()),
        (EVERYTHING_TYPED, DRAWN, ("input_box", "input_point", "drawn graphics")),
        ({"input_text": "shoe"}, Drawing(others=("polyline",)), ("drawn graphics",)),
        ({"input_box": TYPED_BOX}, DRAWN, ("drawn graphics",)),
        ({"input_box_label": "1"}, Drawing((BOX,), (POINT,)), ("drawn points",)),
        ({}, Drawing((BOX, OTHER_BOX), (POINT,)), ("drawn points",)),
        ({}, DRAWN, ()),
    ],
)
def test_the_chosen_prompt_names_what_is_not_used(typed, drawing, unused):
    assert choose(**typed, drawing=drawing).unused == unused


# --- fractions of the image


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ({"input_box": "[0.2, 0.3, 0.6, 0.9]"}, ["input_box"]),
        ({"input_box": "[[0, 0, 1, 1]]"}, ["input_box"]),
        ({"input_box": "[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]"}, ["input_box"]),
        ({"input_box": "[-0.01, 0.3, 0.6, 0.9]"}, ["input_box"]),
        ({"input_box": "[0.2, 0.3, 0.6, 0.9]", "input_box_label": "1"}, ["input_box"]),
        ({"input_text": "shoe", "input_box": "[0.2, 0.3, 0.6, 0.9]", "input_box_label": "0"}, ["input_box"]),
        ({"input_box": "[0.2, 0.3, 0.6, 1.004]"}, ["input_box"]),
        ({"input_point": "[0.5, 0.25]"}, ["input_point"]),
        ({"input_point": "[[0, 0], [0.5, 1]]"}, ["input_point"]),
        ({"input_box": "[0, 0, 0.5, 0.5]", "input_point": "[0.2, 0.2]"}, ["input_box", "input_point"]),
        ({"input_box": "[0, 0, 0.5, 0.5]", "input_point": "[20, 20]"}, ["input_box"]),
        # pixels
        ({"input_point": "[1, 1]"}, []),
        ({"input_point": "[[0, 0], [1, 0]]"}, []),
        ({"input_point": "[[0.5, 0.5], [20, 30]]"}, []),
        ({"input_box": "[0, 0, 1, 2]"}, []),
        ({"input_box": "[[0, 0, 1, 1], [10, 10, 30, 30]]"}, []),
        ({"input_box": "[0, 0, 20, 20]", "input_point": "[1, 1]"}, []),
        ({"input_text": "shoe"}, []),
    ],
)
def test_typed_fractions_of_the_image_cause_a_warning_that_names_the_parameter(caplog, typed, named):
    fitted = fit(**typed)
    assert fitted == fit_prompt(chosen_prompt(**typed), WIDTH, HEIGHT)  # only a warning
    warnings = [record.getMessage() for record in caplog.records]
    assert [warning.partition(" = ")[0] for warning in warnings] == named
    for warning in warnings:
        assert "coordinates are pixels, not fractions of the image" in warning
        assert "its width, 640, and y by its height, 427" in warning


def test_drawn_graphics_and_images_of_one_pixel_cause_no_warning_of_fractions(caplog):
    choose(drawing=Drawing(((0, 0, 0.5, 0.5),), ((0.2, 0.2),))).fit(WIDTH, HEIGHT)
    choose(input_box="[0, 0, 1, 1]", input_point="[0.5, 0.5]").fit(1, 1)
    assert caplog.records == []
    choose(input_box="[0, 0, 1, 1]").fit(1, 900)
    assert len(caplog.records) == 1


def test_the_warning_of_fractions_quotes_what_was_typed(caplog):
    choose(input_box="[[0.2, 0.3, 0.6, 0.9], [0, 0, 1, 1]]").fit(WIDTH, HEIGHT)
    assert caplog.messages[0].startswith("input_box = '[[0.2, 0.3, 0.6, 0.9], [0, 0, 1, 1]]': ")


@pytest.mark.parametrize(
    ("phrase", "plain"),
    [
        ("yellow school bus", True),
        ("driver's seat", True),
        ("2.5 inch disk", True),
        ("shoe, hat", False),
        ("a shoe.", False),
        ('the "red" shoe', False),
        ("the 'red' shoe", False),
        ("“shoe”", False),
        ("`shoe`", False),
        ("shoe; hat", False),
        ("靴，帽子", False),
        ("靴、帽子", False),
        ("靴。", False),
    ],
)
def test_separators_quotation_marks_and_a_final_dot_are_unusual_in_a_phrase(phrase, plain):
    assert is_plain_phrase(phrase) == plain


def test_a_fitted_prompt_is_not_fitted_again():
    fitted = fit_prompt(GeometricPrompt((BOX,)), WIDTH, HEIGHT)
    assert fit_prompt(fitted, WIDTH, HEIGHT) is fitted
    with pytest.raises(ValueError, match="fitted to an image of 640x427 pixels, not 427x640"):
        fit_prompt(fitted, HEIGHT, WIDTH)


def test_example_boxes_are_clipped_and_normalized():
    prompt = ConceptPrompt(boxes=((-5, 10, 20, 1000), BOX), box_labels=(1, 0))
    fitted = fit_prompt(prompt, 100, 200)
    assert fitted.prompt == dataclasses.replace(prompt, boxes=((0, 10, 20, 200), BOX))
    assert fitted.relative_boxes == ((0, 0.05, 0.2, 1), (0.1, 0.1, 0.3, 0.2))
    refused = refusal(fit_prompt, ConceptPrompt(boxes=((100, 0, 105, 5),), box_labels=(1,)), 100, 200)
    assert refused.startswith("boxes = '[100, 0, 105, 5]': the box is outside the image")


def test_instances_are_named_after_their_phrase_or_object():
    assert ConceptPrompt(("shoe", "hat")).names == ("shoe", "hat")
    assert ConceptPrompt(("shoe",), (BOX,), (1,)).names == ("shoe",)
    assert ConceptPrompt(boxes=(BOX,), box_labels=(1,)).names == GEOMETRY.names == ("object",)


@pytest.mark.parametrize("labels", ["", " ", "[]", "[1, 1]", "(1.0, 1.0)"])
def test_labels_default_to_foreground(labels):
    prompt = chosen_prompt(input_point="[[5, 6], [7, 8]]", input_point_label=labels)
    assert prompt == GeometricPrompt(points=(POINT, (7.0, 8.0)), point_labels=(1, 1))


def test_labels_belong_to_the_points_in_order():
    prompt = chosen_prompt(input_point="[[5, 6], [7, 8]]", input_point_label="[0, 1]")
    assert prompt.point_labels == (0, 1)


def test_points_refine_one_box(caplog):
    prompt = chosen_prompt(input_box=TYPED_BOX, input_point=TYPED_POINT, input_point_label="0")
    assert prompt == GeometricPrompt(boxes=(BOX,), points=(POINT,), point_labels=(0,))
    assert logged_warnings(caplog) == []


def test_points_are_ignored_with_several_typed_boxes(caplog):
    prompt = chosen_prompt(input_box=str([BOX, OTHER_BOX]), input_point=TYPED_POINT, input_point_label="0")
    assert prompt == GeometricPrompt(boxes=(BOX, OTHER_BOX))
    (warning,) = logged_warnings(caplog)
    assert "2 boxes" in warning
    assert "points are ignored" in warning


def test_points_are_ignored_with_several_drawn_rectangles(caplog):
    prompt = chosen_prompt(drawing=Drawing((BOX, OTHER_BOX), (POINT, POINT)))
    assert prompt == GeometricPrompt(boxes=(BOX, OTHER_BOX))
    (warning,) = logged_warnings(caplog)
    assert "points are ignored" in warning


@pytest.mark.parametrize("labels", ["[0, 1]", "(0, 1)"])
def test_labels_without_typed_points_apply_to_the_drawn_points(caplog, labels):
    drawing = Drawing((BOX,), (POINT, (7.0, 8.0)))
    prompt = chosen_prompt(input_point_label=labels, drawing=drawing)
    assert prompt == GeometricPrompt((BOX,), drawing.points, (0, 1))
    assert logged_warnings(caplog) == []
    message = refusal(choose, input_point_label="[1]", drawing=drawing)
    assert_quotes(message, "input_point_label", "[1]")
    assert "1 label for 2 points" in message


@pytest.mark.parametrize(
    ("rectangles", "points", "prompt"),
    [
        ([], [], None),
        ([BOX], [], GeometricPrompt(boxes=(BOX,))),
        ([BOX, OTHER_BOX], [], GeometricPrompt(boxes=(BOX, OTHER_BOX))),
        ([], [POINT], GeometricPrompt(points=(POINT,), point_labels=(1,))),
        ([], [POINT, (7.0, 8.0)], GeometricPrompt(points=(POINT, (7.0, 8.0)), point_labels=(1, 1))),
        ([BOX], [POINT, (7.0, 8.0)], GeometricPrompt(boxes=(BOX,), points=(POINT, (7.0, 8.0)), point_labels=(0, 0))),
    ],
)
def test_drawn_points_are_background_if_a_rectangle_is_also_drawn(caplog, rectangles, points, prompt):
    assert chosen_prompt(drawing=Drawing(tuple(rectangles), tuple(points))) == prompt
    assert logged_warnings(caplog) == []


# --- prompts as values


@pytest.mark.parametrize(
    ("prompt", "field"),
    [(ConceptPrompt(("shoe",)), "phrases"), (GEOMETRY, "boxes"), (fit_prompt(GEOMETRY, 99, 99), "width")],
)
def test_prompts_cannot_be_changed(prompt, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(prompt, field, "other")


@pytest.mark.parametrize(
    "make",
    [
        lambda: chosen_prompt("shoe"),
        lambda: chosen_prompt(input_box="[[1, 2, 3, 4]]", input_point="[[5, 6]]", input_point_label="[0]"),
        lambda: choose(drawing=Drawing((BOX,), (POINT,))),
        lambda: choose(drawing=Drawing((BOX,), (POINT,))).fit(20, 30),
        lambda: fit_prompt(GEOMETRY, 20, 30),
    ],
)
def test_equal_prompts_have_equal_hashes(make):
    assert make() is not make()
    assert {make(), make()} == {make()}


def test_different_prompts_are_not_equal():
    assert ConceptPrompt(("shoe",)) != ConceptPrompt(("shoes",))
    assert ConceptPrompt(("shoe",)) != ConceptPrompt(("shoe",), (BOX,), (1,))
    assert dataclasses.replace(GEOMETRY, point_labels=(0,)) != GEOMETRY


def test_a_phrase_fits_every_image():
    assert fit_prompt(ConceptPrompt(("shoe",)), 1, 1).prompt == ConceptPrompt(("shoe",))


def test_fitting_clips_the_boxes_and_keeps_the_rest():
    prompt = GeometricPrompt((BOX,), (POINT, (7.0, 8.0)), (1, 0))
    fitted = fit_prompt(prompt, 20, 40)
    assert fitted.prompt == GeometricPrompt(((10, 20, 20, 40),), (POINT, (7.0, 8.0)), (1, 0))
    assert fitted.relative_boxes == ((0.5, 0.5, 1, 1),)
    assert fitted.relative_points == (pytest.approx((0.25, 0.15)), pytest.approx((0.35, 0.2)))
    assert prompt.boxes == (BOX,)


# --- arbitrary text

CHARACTERS = "[](){},:01\"'\\ \n\u00a0\ud800"
WORDS = [",)", "1.0", "-2.5", "1e999", "NaN", "Infinity", "true", "null", "\\u0000", "[1,2]", "(1,2)", "[1,2,3,4]"]
ANY_TEXT = st.one_of(
    st.text(),
    st.text(alphabet="[](),.0123456789-+eE \t\n\"'\\{}:NaIfnity\u00a0\u0661\ufeffé𝐀"),
    st.lists(st.sampled_from([*CHARACTERS, *WORDS]), max_size=40).map("".join),
)
PHRASES = st.booleans().flatmap(lambda blank: st.just("") if blank else ANY_TEXT)
thorough = settings(max_examples=200)


@pytest.mark.parametrize("parameter", ARITY)
@thorough
@given(text=ANY_TEXT)
def test_any_text_gives_rows_of_finite_numbers_or_a_prompt_error(parameter, text):
    try:
        rows = PARSERS[parameter](text)
    except PromptError as refused:
        assert str(refused).startswith(f"{parameter} = ")  # noqa: PT017 - an error is one of two valid results
    else:
        assert all(len(row) == ARITY[parameter] and all(map(math.isfinite, row)) for row in rows)


@pytest.mark.parametrize("parameter", LABELS)
@thorough
@given(text=ANY_TEXT)
def test_any_text_gives_labels_or_a_prompt_error(parameter, text):
    try:
        labels = PARSERS[parameter](text)
    except PromptError as refused:
        assert str(refused).startswith(f"{parameter} = ")  # noqa: PT017
    else:
        assert set(labels) <= {0, 1}


@thorough
@given(text=ANY_TEXT | ANY_TEXT.map(lambda text: f"[{text}]") | ANY_TEXT.map(lambda text: f"{{{text}}}"))
def test_any_text_gives_phrases_or_a_prompt_error(text):
    try:
        phrases = phrases_of(text)
    except PromptError as refused:
        assert str(refused).startswith("input_text = ")  # noqa: PT017
    else:
        assert all(phrase == " ".join(phrase.split()) != "" for phrase in phrases)
        assert len(set(phrases)) == len(phrases)


@thorough
@given(
    text=PHRASES,
    box=ANY_TEXT,
    box_labels=PHRASES,
    point=ANY_TEXT,
    point_labels=ANY_TEXT,
    drawn=st.sampled_from([None, DRAWN]),
)
def test_any_combination_of_texts_gives_a_prompt_or_a_prompt_error(text, box, box_labels, point, point_labels, drawn):
    try:
        prompt = chosen_prompt(text, box, box_labels, point, point_labels, drawn)
    except PromptError as refused:
        assert str(refused).startswith("input_")  # noqa: PT017
    else:
        has_boxes = bool(drawn or not is_blank(box))
        assert isinstance(prompt, ConceptPrompt) == bool(phrases_of(text) or (has_boxes and not is_blank(box_labels)))
        assert drawn is None or prompt is not None


MALFORMED_TOGETHER = [
    ({}, {}),
    ({"input_text": "shoe", "input_box": "[1, 2, 3, 4]", "input_point": "(1, 2)", "input_point_label": "1"}, {}),
    ({"input_text": "shoe", "input_box": "[1, 2"}, {"input_box": "cannot be read"}),
    ({"input_point": "[1, 2", "input_point_label": "[7]"}, {"input_point": "read", "input_point_label": "'7' is not"}),
    ({"input_point": "[1, 2]", "input_point_label": "[1, 0]"}, {"input_point_label": "2 labels for 1 point"}),
    ({"input_point": "[1, 2", "input_point_label": "[1, 0]"}, {"input_point": "cannot be read"}),
    ({"input_point_label": "1"}, {}),  # for a point drawn later
    ({"input_box": "[1, 2, 3, 4]", "input_point_label": "1"}, {}),
    ({"input_box": "[1, 2", "input_point_label": "1"}, {"input_box": "cannot be read"}),
    ({"input_point": "[[1, 2], [3, 4]]", "input_point_label": "1"}, {}),
    ({"input_box": "[[1, 2, 3, 4], [5, 6, 7, 8]]", "input_box_label": "1"}, {}),
    ({"input_text": "x" * 1001, "input_box": "[]"}, {"input_text": "at most 1000 characters"}),
    ({"input_text": "[shoe]"}, {"input_text": "cannot be read"}),
    ({"input_text": '["shoe", "hat"]', "input_box": "[1, 2, 3, 4]"}, {}),
    ({"input_text": "shoe", "input_box": "[1, 2, 3, 4]", "input_box_label": "1"}, {}),
    ({"input_box": "[1, 2, 3, 4]", "input_box_label": "[1, 0]"}, {"input_box_label": "2 labels for 1 box"}),
    ({"input_box": "[1, 2, 3, 4]", "input_box_label": "[0]"}, {"input_box_label": "there is no positive example"}),
    ({"input_box_label": "[1, 0]"}, {}),  # for rectangles drawn later
    ({"input_box_label": "[1, 2]"}, {"input_box_label": "'2' is not"}),
    ({"input_box": "[1, 2", "input_box_label": "[7]"}, {"input_box": "read", "input_box_label": "'7' is not"}),
]


@pytest.mark.parametrize(("typed", "reasons"), MALFORMED_TOGETHER)
def test_the_errors_of_all_parameters_are_reported_together(typed, reasons):
    errors = PromptStrings(**typed).errors()
    assert list(errors) == list(reasons)
    for name, reason in reasons.items():
        assert_quotes(errors[name], name, typed[name])
        assert reason in errors[name]


@given(box=ANY_TEXT, box_labels=PHRASES, point=ANY_TEXT, point_labels=ANY_TEXT)
def test_errors_include_the_one_that_a_run_raises_and_others_only_of_unused_parameters(
    box, box_labels, point, point_labels
):
    strings = PromptStrings("", box, box_labels, point, point_labels)
    errors = strings.errors()
    try:
        chosen = strings.choose()
    except PromptError as refused:
        assert errors[refused.argument] == str(refused)  # noqa: PT017
    else:
        unused = " ".join(chosen.unused if chosen else strings.labels_without_use())
        # the label of a point is unused with its point
        assert all(name.removesuffix("_label") in unused for name in errors)


NUMBERS = st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9, allow_subnormal=False)
SPANS = st.tuples(NUMBERS, NUMBERS).filter(lambda span: span[0] != span[1]).map(sorted)
BOXES = st.builds(lambda xs, ys: (xs[0], ys[0], xs[1], ys[1]), SPANS, SPANS)
POINTS = st.tuples(NUMBERS, NUMBERS)


def lists_and_tuples(items):
    return st.lists(items, max_size=6) | st.lists(items, max_size=6).map(tuple)


@thorough
@given(boxes=lists_and_tuples(BOXES | BOXES.map(list)))
def test_boxes_survive_a_round_trip_through_str(boxes):
    assert parse_boxes(str(boxes)) == tuple(map(tuple, boxes))


@thorough
@given(points=lists_and_tuples(POINTS | POINTS.map(list)))
def test_points_survive_a_round_trip_through_str(points):
    assert parse_points(str(points)) == tuple(map(tuple, points))


@thorough
@given(box=BOXES | BOXES.map(list), point=POINTS | POINTS.map(list))
def test_a_flat_box_and_a_flat_point_survive_a_round_trip_through_str(box, point):
    assert parse_boxes(str(box)) == (tuple(box),)
    assert parse_points(str(point)) == (tuple(point),)


@thorough
@given(labels=lists_and_tuples(st.sampled_from([0, 1, 0.0, 1.0])))
def test_labels_survive_a_round_trip_through_str(labels):
    assert parse_point_labels(str(labels)) == tuple(labels)


# --- parsing time is linear in the length of the text

LONG_TEXTS = {
    "open square brackets": lambda n: "[" * n,
    "open parentheses": lambda n: "(" * n,
    "nested lists": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "nested parentheses": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "nested tuples": lambda n: "(" * (n // 3) + "1" + ",)" * (n // 3),
    "nested lists of readable depth": lambda n: "[" + ",".join(["[" * 900 + "]" * 900] * (n // 1800)) + "]",
    "nested objects": lambda n: '{"a":' * (n // 6) + "1" + "}" * (n // 6),
    "an object": lambda n: str({f"{x:06}": 0.5 for x in range(n // 15)}),
    "objects in a list": lambda n: str([{"a": 1}] * (n // 10)),
    "empty tuples": lambda n: "()" * (n // 2),
    "list of empty tuples": lambda n: "[" + ",".join(["()"] * (n // 3)) + "]",
    "points": lambda n: str([[x % 7, x % 5] for x in range(n // 8)]),
    "points in tuples": lambda n: str(tuple((x % 7, x % 5) for x in range(n // 8))),
    "numbers": lambda n: "[" + ",".join(["1"] * (n // 2)) + "]",
    "numbers in a tuple": lambda n: "(" + "1," * (n // 2) + ")",
    "numbers in a row": lambda n: "[[" + ",".join(["1"] * (n // 2)) + "]]",
    "a long integer": lambda n: "9" * n,
    "a long integer in a row": lambda n: "[[" + "9" * n + ", 2]]",
    "a long fraction": lambda n: "[[1." + "1" * n + ", 2]]",
    "a tiny fraction": lambda n: "[[0." + "0" * n + "1, 2]]",
    "a long exponent": lambda n: "[[1e" + "9" * n + ", 2]]",
    "commas": lambda n: "," * n,
    "commas in a tuple": lambda n: "(" + "," * n + ")",
    "closed commas": lambda n: "(" + ",)" * (n // 2),
    "double quotes": lambda n: '"' * (n // 6 * 6 + 2),  # adjacent empty strings
    "single quotes": lambda n: "'" * (n // 6 * 6 + 2),
    "a quoted phrase": lambda n: '"' + "x" * n + '"',
    "numpy strings": lambda n: "[" + "np.str_('" * (n // 9),
    "numpy strings of both kinds": lambda n: "[" + "np.str_('" + 'np.str_("' * (n // 9),
    "backslashes": lambda n: "\\" * n,
    "quoted backslashes": lambda n: '["(' + "\\" * n + '"]',
    "spaces": lambda n: " " * n,
    "spaces in a tuple": lambda n: "(" + " " * n + ")",
    "minus signs": lambda n: "[" + "-" * n,
    "surrogates": lambda n: "[" + "\ud800" * n,
    "one word": lambda n: "x" * n,
    "words": lambda n: "x " * (n // 2),
    "newlines": lambda n: "\n" * n + "shoe",
}


def assert_time_grows_linearly(answer, make_text) -> None:
    """Check that a text of twice the length takes at most three times as long.

    Compares medians of alternating runs, in processor time, and retries because a busy machine can distort them.
    """
    texts = [make_text(LONG // 4), make_text(LONG // 2)]
    ratios = []
    gc.disable()  # the time of a collection depends on the other objects in the process
    try:
        answer(texts[0])
        while min(ratios, default=math.inf) > 3:
            assert len(ratios) < 10, f"twice the text took {ratios} times as long"
            durations = [[processor_time(answer, text) for text in texts] for _ in range(5)]
            short, long = (statistics.median(column) for column in zip(*durations, strict=True))
            ratios.append(long / short)
    finally:
        gc.enable()


def processor_time(answer, text) -> float:
    calls, start = 0, time.process_time()
    while calls == 0 or (time.process_time() - start < 0.0005):
        answer(text)
        calls += 1
    return (time.process_time() - start) / calls


@pytest.mark.parametrize("parameter", PARSERS)
@pytest.mark.parametrize("shape", LONG_TEXTS)
def test_the_time_to_parse_a_text_is_linear_in_its_length(parameter, shape):
    def answer(text):
        try:
            PARSERS[parameter](text)
        except PromptError as refused:
            assert len(str(refused)) < 1500  # noqa: PT017

    assert_time_grows_linearly(answer, LONG_TEXTS[shape])


@pytest.mark.parametrize("shape", LONG_TEXTS)
def test_the_time_to_parse_phrases_is_linear_in_their_length(shape):
    def answer(text):
        try:
            choose(text)
        except PromptError as refused:
            assert len(str(refused)) < 1500  # noqa: PT017

    assert_time_grows_linearly(answer, LONG_TEXTS[shape])


def test_long_lists_of_points_and_labels_are_read_in_full():
    points = LONG_TEXTS["points"](LONG)
    assert len(parse_points(points)) == LONG // 8
    assert parse_points(LONG_TEXTS["points in tuples"](LONG)) == parse_points(points)
    assert parse_point_labels(LONG_TEXTS["numbers"](LONG)) == (1,) * (LONG // 2)
