"""The README and the docs: their Python code runs as written, and their tables match the code."""

import ast
import re
from pathlib import Path
from unittest import mock

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from ikomia import dataprocess
from ikomia.dataprocess.registry import ik_registry
from ikomia.dataprocess.workflow import Workflow
from PIL import Image
from support import pages

import demo.__main__ as demo
from demo.docs_pictures import COPIES, OVERVIEW
from sam3_engine.errors import DeviceMemoryError, WeightFileError, WeightsError
from sam3_engine.model import load_model
from sam3_engine.settings import Settings
from sam3_engine.weights import find_checkpoint
from testbed.layout_files import (
    as_fine_tuned,
    as_transformers_click_head,
    read_contents,
    write_safetensors,
    write_torch,
)
from testbed.plugin import PLUGIN, REPOSITORY, Plugin
from testbed.scenes import draw_scene

TRUCK, SCENE = (1200, 1800), (360, 480)  # height and width
MOST_WORDS = 1800

# the number of outputs after the image, for each Python block of a section; None if no workflow runs
OUTPUTS = {
    ("README.md", "Use with Ikomia API"): [1, 1],
    ("README.md", "Explore algorithm outputs"): [2],
    ("docs/development.md", "Install without make"): [None],
    ("docs/engine.md", "Predict"): [None, None],
    ("docs/engine.md", "Prompts"): [None],
    ("docs/engine.md", "Several prompts for one image"): [None],
    ("docs/engine.md", "Stop early"): [None],
    ("docs/images.md", "Files"): [None],
    ("docs/outputs.md", "Masks"): [1],
    ("docs/outputs.md", "Objects"): [2],
    ("docs/outputs.md", "Connections"): [2],
    ("docs/outputs.md", "Overlays"): [2],
    ("docs/outputs.md", "Saving"): [2],
    ("docs/prompts.md", "Prompts"): [1],
    ("docs/prompts.md", "Text"): [1],
    ("docs/prompts.md", "Several phrases"): [2],
    ("docs/prompts.md", "A threshold for each phrase"): [1],
    ("docs/prompts.md", "Limits of number and area"): [1],
    ("docs/prompts.md", "Example boxes"): [1, 1],
    ("docs/prompts.md", "A single point"): [3],
    ("docs/prompts.md", "Several points"): [1],
    ("docs/prompts.md", "A box"): [1],
    ("docs/prompts.md", "Several boxes"): [3],
    ("docs/prompts.md", "A box and points"): [1],
    ("docs/prompts.md", "How values are read"): [1],
    ("docs/weights.md", "Use your own file"): [1],
    ("docs/weights.md", "The shapes network"): [1],
    ("docs/speed.md", "Between processes"): [1],
    ("docs/tiles.md", "Tiles"): [1],
    ("docs/everything.md", "Segment everything"): [2],
}
PAGES = [page for page in pages.all_pages() if not page.startswith(".")]
BLOCKS = [(page, *block) for page in PAGES for block in pages.python_blocks(page)]
TRIED_BELOW = ("docs/many_images.md", "docs/development.md")  # test_batch.py also reads the dataset of many_images.md


def test_every_python_block_is_tested():
    elsewhere = [block for block in BLOCKS if block[0] in ("docs/many_images.md", "docs/videos.md")]
    assert len(BLOCKS) == sum(map(len, OUTPUTS.values())) + len(elsewhere)
    assert len(BLOCKS) == sum(pages.read(page).count("```python") for page in PAGES)


@pytest.mark.parametrize(("page", "section"), OUTPUTS, ids=[" ".join(place) for place in OUTPUTS])
def test_python_blocks_run(readers_machine, page, section):
    blocks = [code for *place, code in BLOCKS if place == [page, section]]
    for code, count in zip(blocks, OUTPUTS[page, section], strict=True):
        if page in TRIED_BELOW:
            continue
        code = code.replace("/data/sam3.pt", str(readers_machine / "sam3.pt"))
        namespace = {}
        if count is None or "Workflow()" in code:
            exec(compile(code, f"{page}, {section}", "exec"), namespace)
        else:
            algo = run_snippet(code, readers_machine / "truck.jpg", f"{page}, {section}")
            namespace["algo"] = algo
        if count is not None:
            check_outputs(namespace["algo"], count, objects="instance_output" in code, scene="scene.png" in code)


def run_snippet(code, picture, place):
    """Run code that sets parameters of ``algo``, run its workflow on a picture, and return the algorithm."""
    workflow = Workflow()
    algo = workflow.add_task(name=PLUGIN, auto_connect=True)
    exec(compile(code, place, "exec"), {"algo": algo})
    workflow.run_on(path=str(picture))
    return algo


def check_outputs(algo, count, *, objects, scene):
    """Check the number of outputs after the image, how many of them are masks, and their size."""
    outputs = algo.get_outputs()[1:]
    assert len(outputs) == count
    masks = [output for output in outputs if isinstance(output, dataprocess.CSemanticSegmentationIO)]
    assert len(masks) == count - objects
    assert all(output.get_mask().shape == (SCENE if scene else TRUCK) for output in masks)


def test_the_first_example_finds_the_shapes_in_its_picture(readers_machine, capsys):
    code, _ = (code for page, section, code in BLOCKS if (page, section) == ("README.md", "Use with Ikomia API"))
    exec(compile(code, "README.md", "exec"), {})
    finds, _, scores = code.partition("description)  # ")[2].splitlines()[0].partition(", scores ")
    found = re.search(f"^{finds}, scores (.+)$", capsys.readouterr().out, re.MULTILINE)
    # with and without bfloat16, scores differ a little
    assert ast.literal_eval(found[1]) == pytest.approx(ast.literal_eval(scores), abs=0.005)


ROWS = re.findall(r"^\| [^|]+ \| `(\{.+\})` \|$", pages.read("README.md"), re.MULTILINE)


@pytest.mark.parametrize(("row", "count"), list(zip(ROWS, [1, 1, 3, 1, 1, 2, 1, 1], strict=True)), ids=range(len(ROWS)))
def test_prompts_in_the_readme_run(readers_machine, row, count):
    assert isinstance(ast.literal_eval(row), dict)
    algo = run_snippet(f"algo.set_parameters({row})", readers_machine / "truck.jpg", "README.md")
    check_outputs(algo, count, objects=False, scene=False)


def test_the_plugins_folder_can_be_changed(plugins_directory, tmp_path, monkeypatch):
    (code,) = (code for page, _, code in BLOCKS if page == "docs/development.md")
    monkeypatch.chdir(tmp_path)
    Path("plugins").symlink_to(plugins_directory, target_is_directory=True)
    try:
        exec(compile(code, "docs/development.md", "exec"), {})
        assert Path(ik_registry.get_plugins_directory()).samefile(plugins_directory)
    finally:
        ik_registry.set_plugins_directory(f"{plugins_directory}/")


def test_the_folder_run_can_be_saved_and_loaded(readers_machine, capsys):
    Path("photos").mkdir()
    Image.open("truck.jpg").resize((180, 120)).save("photos/flower.png")
    run, read = [code for page, section, code in BLOCKS if (page, section) == ("docs/many_images.md", "With Ikomia")]
    run = run.replace('"input_text": "shoe"', '"input_text": "shoe", "confidence_threshold": "0.1"')
    exec(compile(run, "docs/many_images.md", "exec"), {})
    assert list(Path("results").rglob("*flower.json"))
    exec(compile(read, "docs/many_images.md", "exec"), {})
    assert "flower_objects.json shoe 0." in capsys.readouterr().out


def test_the_table_of_parameters_is_complete(workflow):
    _, *rows = re.findall(r"^\| (.+?) \| (\w+) \| (.+?) \|", table_of_parameters(), re.MULTILINE)
    defaults = {"empty": "", "if available": str(torch.cuda.is_available())}
    told = {name.strip("`"): defaults.get(default, default) for name, _, default in rows}
    assert told == workflow.find_task(PLUGIN)[0].get_parameters()


def table_of_parameters():
    return pages.sections(pages.read("README.md"))["Set algorithm parameters"]


def test_the_readme_is_short():
    assert len(pages.read("README.md").split()) <= MOST_WORDS


TROUBLE = {
    "no such file": {"model_weight_file": "/nowhere/sam3.pt", "input_point": "[5, 5]"},
    "a folder": {"model_weight_file": "clone", "input_point": "[5, 5]"},
    "a cut download": {"model_weight_file": "cut.pt", "input_point": "[5, 5]"},
    "a hole": {"model_weight_file": "hole.pt", "input_point": "[5, 5]"},
    "tensors are missing": {"model_weight_file": "missing.pt", "input_point": "[5, 5]"},
    "unexpected tensors": {"model_weight_file": "changed.pt", "input_point": "[5, 5]"},
    "no click head": {"model_weight_file": "tuned.pt", "input_point": "[5, 5]"},
    "no detector": {"model_weight_file": "tracker.safetensors", "input_text": "shoe"},
    "malformed": {"input_box": "[[425, 600, 700, 875]"},
    "no area": {"input_box": "[700, 600, 425, 875]"},
    "outside": {"input_point": "[520, 375]"},
    "labels": {"input_point": "[[500, 375], [1125, 625]]", "input_point_label": "[1]"},
    "no GPU": {"cuda": True, "input_point": "[5, 5]"},
    "text before box": {"input_text": "shoe", "input_box": "[1, 1, 50, 50]"},
    "fractions": {"input_box": "[[0.2, 0.3, 0.6, 0.9]]"},
    "nothing found": {"input_text": "shoe", "confidence_threshold": 1},
}


@pytest.fixture
def reported(small_checkpoint, monkeypatch, tmp_path, caplog):
    """Return the errors, warnings and descriptions that users get for each problem."""
    monkeypatch.chdir(tmp_path)
    data = small_checkpoint.read_bytes()
    Path("cut.pt").write_bytes(data[:100_000])
    Path("hole.pt").write_bytes(data[:400_000] + bytes(4096) + data[404_096:])
    saved = read_contents(small_checkpoint)
    tuned = as_fine_tuned(saved.tensors)
    write_torch(Path("tuned.pt"), tuned, saved.architecture)
    write_torch(Path("missing.pt"), dict(list(tuned.items())[:-1]), saved.architecture)
    write_torch(Path("changed.pt"), {**tuned, "adapter.weight": torch.zeros(1)}, saved.architecture)
    write_safetensors(Path("tracker.safetensors"), as_transformers_click_head(saved.tensors), saved.architecture)
    Path("clone").mkdir()
    Path("clone", "sam3.pt").touch()
    told = []
    for parameters in TROUBLE.values():
        plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
        try:
            told += [output.description for output in plugin.segment(np.zeros((360, 480, 3), np.uint8), **parameters)]
        except RuntimeError as error:
            told.append(str(error))

    refused = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    for weights, error in (
        ("", GatedRepoError("gated", response=refused)),
        ("", LocalEntryNotFoundError("offline")),
        ("owner/repository/sam3.pt", RepositoryNotFoundError("not found", response=refused)),
    ):
        monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", mock.Mock())
        monkeypatch.setattr("huggingface_hub.hf_hub_download", mock.Mock(side_effect=error))
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        settings = Settings(model_weight_file=weights)
        with pytest.raises((WeightsError, WeightFileError)) as caught, settings.naming_weights():
            find_checkpoint(weights, tmp_path)
        told.append(str(caught.value))
    told.append(str(DeviceMemoryError(torch.device("cuda", 0))))
    load_model(small_checkpoint, torch.device("cpu"), torch.float16)._switch_to_float32()
    return told + [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_every_message_in_troubleshooting_is_real(reported):
    quoted = re.findall(r"^\| `(.*?)` \|", pages.read("docs/troubleshooting.md"), re.MULTILINE)
    assert len(quoted) == len(TROUBLE) + 5
    for message in quoted:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.fullmatch(pattern, text) for text in reported), (message, reported)


def test_every_file_in_the_layout_exists():
    layout = pages.sections(pages.read("docs/development.md"))["Layout"]
    (tree,) = re.findall(r"^```\n(.*?)```", layout, re.DOTALL | re.MULTILINE)
    named = re.findall(r"(?<![\w/])(\w+\.py|\w+/)(?=\s|$)", tree)
    assert len(named) > 10
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_module_of_the_engine_is_documented():
    named = re.findall(r"^\| `(\w+\.py)` \|", pages.read("sam3_engine/README.md"), re.MULTILINE)
    present = [path.name for path in (REPOSITORY / "sam3_engine").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(present)


def test_the_pictures_are_drawn_by_the_demo():
    scene = draw_scene(np.random.default_rng(demo.SCENE_SEED), *demo.SCENE_SIZE)
    drawn = {demo.file_name(request.title) for request in demo.requests_about(scene)}
    assert {*COPIES.values(), *OVERVIEW} <= drawn | {"panel_filled"}
    with Image.open(REPOSITORY / "images" / "scene.png") as picture:
        assert np.array_equal(np.asarray(picture), scene.image)
