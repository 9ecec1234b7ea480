"""`make demo` as a new user runs it."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import demo.__main__ as demo
from testbed.plugin import REPOSITORY
from testbed.scenes import draw_scene

ROW = re.compile(
    r"(?P<title>.+?) +(?P<masks>\d+) +(?P<ms>\d+)(?: +(?P<iou>[01]\.\d\d))? +(?P<scores>[\d. ]+|nothing found)"
)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the demo with a command line; return its printed lines and the folder of its pictures."""
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "output")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["demo", *map(str, arguments)])
        demo.main()
        return capsys.readouterr().out.splitlines(), tmp_path / "output"

    return run


def table(lines):
    """Return the rows of the printed table, by title."""
    rows = [ROW.fullmatch(line) for line in lines]
    return {row["title"]: row for row in rows if row}


def size_of(path):
    with PIL.Image.open(path) as picture:
        return picture.size


def test_every_kind_of_prompt_works_on_a_synthetic_scene(run):
    lines, output = run()
    rows = table(lines)
    scene = draw_scene(np.random.default_rng(demo.SCENE_SEED), *demo.SCENE_SIZE)
    for phrase in ("star", "red circle"):
        row = rows[f"text '{phrase}'"]
        scores = row["scores"].split()
        assert int(row["masks"]) == len(scores) == len(scene.instances(phrase)) > 0
        assert scores == sorted(scores, reverse=True)
    assert [row["scores"] for title, row in rows.items() if "not in the scene" in title] == ["nothing found"]
    assert [rows[title]["masks"] for title in ("point on a dot", "point, three candidates", "three boxes")] == list(
        "133"
    )
    assert all(float(row["iou"]) > 0.8 for title, row in rows.items() if "not in the scene" not in title)
    pictures = {path.name for path in output.iterdir()}
    assert len(pictures) == len(rows) + 1
    assert size_of(output / "all.png")[0] > 3 * demo.SCENE_SIZE[0]
    assert size_of(output / "point_three_candidates.png")[0] == 3 * demo.SCENE_SIZE[0]


def test_an_overlay_shows_the_mask_on_the_shape(run):
    _, output = run("--text", "star")
    scene = draw_scene(np.random.default_rng(demo.SCENE_SEED), *demo.SCENE_SIZE)
    with PIL.Image.open(output / "text_star.png") as picture:
        pixels = np.asarray(picture)[-scene.image.shape[0] :]
    changed = np.abs(pixels.astype(int) - scene.image).sum(axis=2) > 60
    stars = sum(region.coverage for region in scene.instances("star")) > 0.5
    assert changed[stars].mean() > 0.9
    assert changed[~stars].mean() < 0.05


@pytest.mark.parametrize("weights", [[], ["--weights", os.path.relpath(demo.SHAPES_NETWORK)]])
def test_your_own_image_and_prompt_print_what_the_network_knows(run, photograph, tmp_path, weights):
    PIL.Image.fromarray(photograph).save(tmp_path / "photograph.jpg")
    lines, output = run(
        "--image", tmp_path / "photograph.jpg", "--point", "[[300, 200]]", "--multimask", "True", *weights
    )
    assert any("knows only colored shapes" in line for line in lines)
    assert any("MASKS MEAN NOTHING" in line for line in lines)
    assert table(lines)["point [[300, 200]], multimask True"]["masks"] == "3"
    assert size_of(output / "point_300_200_multimask_True.png")[0] == 3 * photograph.shape[1]


def test_loggers_keep_their_levels(run):
    def levels():
        return [logging.getLogger(name).level for name in ("ikomia", "sam3_engine")]

    before = levels()
    run("--text", "star")
    assert levels() == before


def test_other_weights_do_not_print_the_notice(run, small_checkpoint):
    lines, _ = run("--weights", small_checkpoint, "--box", "[[50, 50, 150, 150]]")
    assert not any("knows only" in line for line in lines)
    assert table(lines)["box [[50, 50, 150, 150]]"]["masks"] == "1"


def test_everything_can_be_asked_for(run):
    lines, output = run("--points_per_side", "12")
    row = next(line for line in lines if line.startswith("points_per_side 12"))
    assert int(row.split()[2]) == len(row.split()) - 4 > 3  # masks, milliseconds, and a score for each mask
    assert (output / "points_per_side_12.png").is_file()


def test_a_number_in_the_phrase_is_not_read_as_a_score(run):
    lines, _ = run("--text", "scores 0.123 star")
    row = table(lines)["text scores 0.123 star"]
    scores = [] if row["scores"] == "nothing found" else row["scores"].split()
    assert len(scores) == int(row["masks"])
    assert "0.123" not in scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--image", "nowhere.png", "--text", "star"],
            "image = 'nowhere.png': there is no such file; expected a picture.",
        ),
        (["--image", "Makefile", "--text", "star"], "image = 'Makefile': cannot identify image file"),
        (["--weights", "nowhere.pt"], "model_weight_file = 'nowhere.pt': there is no such file (looked for '/"),
        (["--point", "[[1]]"], "input_point = '[[1]]': '[1]' has 1 items, not 2; expected"),
        (["--text", "star", "--threshold", "2"], "confidence_threshold = '2': expected a number from 0 to 1."),
        (["--points_per_side", "65"], "points_per_side = '65': expected a whole number from 0 to 64."),
        (["--text", "star", "--tile_size", "6"], "tile_size = '6': expected 0, or a whole number, 64 or more."),
        (["--box", "[[1, 1, 9, 9]]", "--multimask", "maybe"], "multimask_output = 'maybe': expected True or False."),
    ],
)
def test_an_invalid_argument_gives_a_one_line_error(run, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert str(stopped.value).startswith(message)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image", "nowhere.png"],
        ["--image", "nowhere.png", "--text", " "],
        ["--multimask", "True"],
        ["--label", "[1]"],
    ],
)
def test_without_a_prompt_the_error_lists_the_options(run, arguments, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "say what to segment: TEXT=, POINT=, BOX= or POINTS_PER_SIDE=" in capsys.readouterr().err


def test_empty_arguments_are_ignored(run):
    lines, _ = run("--image", "", "--text", "", "--weights", " ")
    assert any("knows only colored shapes" in line for line in lines)
    assert "text 'star'" in table(lines)


def test_a_copy_of_the_network_is_recognized(run, photograph, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copy(demo.SHAPES_NETWORK, tmp_path / "sam3.pt")
    PIL.Image.fromarray(photograph).save(tmp_path / "photograph.jpg")
    lines, _ = run("--image", "~/photograph.jpg", "--text", "star", "--weights", "~/sam3.pt")
    assert any("MASKS MEAN NOTHING" in line for line in lines)


def test_existing_pictures_are_kept(run, photograph):
    _, output = run("--text", "star")
    PIL.Image.fromarray(photograph).save(output / "photograph.png")
    run("--image", output / "photograph.png", "--text", "circle")
    assert {"photograph.png", "text_star.png", "text_circle.png"} <= {path.name for path in output.iterdir()}


def test_a_box_far_outside_the_image_is_drawn_at_its_edge(run):
    lines, output = run("--box", "[[-1e12, -1e12, 1e12, 1e12]]")
    assert "box [[-1e12, -1e12, 1e12, 1e12]]" in table(lines)
    assert (output / "box_1e12_1e12_1e12_1e12.png").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_passes_on_its_variables_verbatim_and_ignores_the_environment():
    text = """the 'big' "dog" `id` $x $$ \\ -e"""
    given = {"IMAGE": "a b.jpg", "TEXT": text, "POINT": "-foo", "MULTIMASK": "False"}
    command = ["make", "-n", "-o", ".venv/demo-ready", "--no-print-directory", "demo"]
    command += [f"{name}={value}" for name, value in given.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**environment, "LABEL": "[1]"}, capture_output=True, text=True, check=True
    )
    wanted = [f"--{name.lower()}={value}" for name, value in given.items()]
    assert shlex.split(done.stdout)[3:] == wanted


@pytest.mark.skipif((REPOSITORY / "weights" / "sam3.pt").exists(), reason="the gated weights are on this machine")
def test_the_plugin_never_uses_the_demo_network_by_default(tmp_path):
    code = """
import numpy
from testbed.plugin import Plugin
Plugin(cuda=False).segment(numpy.zeros((90, 120, 3), "uint8"), input_text="star")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "put it at" in done.stderr
    assert "sam3_shapes" not in done.stderr
