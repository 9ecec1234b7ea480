"""The README's Python examples run as they are written, on a local picture and a small checkpoint."""

import importlib
import re
import shutil
from pathlib import Path
from unittest import mock

import cv2
import httpx
import ikomia.utils.http
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow
from PIL import Image
from sklearn.datasets import load_sample_image

from sam3_engine.model import DeviceMemoryError
from sam3_engine.weights import WeightsError, find_checkpoint
from testbed.plugin import PLUGIN, REPOSITORY, Plugin

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ENGINE_README = (REPOSITORY / "sam3_engine" / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^##+ (.+?)\n(.*?)(?=^## |^### |\Z)", README, re.DOTALL | re.MULTILINE))
SECTIONS["the engine's README"] = ENGINE_README
TRUCK = (1800, 1200)  # width and height of the picture that the examples' coordinates are for
OUTPUTS_OF_WHOLE_EXAMPLES = {
    "Use with the Ikomia API": 2,
    "Text": 2,
    "Outputs": 2,
    "Objects": 3,
    "the engine's README": 0,
}
OUTPUTS_OF_SNIPPETS = {
    "Several texts": 2,
    "Example boxes": 1,
    "A single point": 3,
    "Several points": 1,
    "A box": 1,
    "Several boxes": 3,
    "A box and points": 1,
}


def blocks(section):
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture
def readers_machine(small_checkpoint, plugins_directory, tmp_path, monkeypatch):
    """The plugin installed, weights in the Hugging Face cache, the pictures to be had, a screen that needs no one."""
    picture = tmp_path / "picture.png"
    Image.fromarray(load_sample_image("flower.jpg")).resize(TRUCK).save(picture)
    monkeypatch.setattr(ikomia.utils.http, "download_file", lambda url, path, *_: shutil.copy(picture, path))

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--facebook--sam3"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copy(small_checkpoint, repository / "snapshots" / commit / "sam3.pt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    importlib.import_module("ikomia.utils.displayIO")  # chooses a backend with windows, if pyplot is not there yet
    importlib.import_module("matplotlib.pyplot").switch_backend("Agg")
    return picture


@pytest.mark.parametrize("section", OUTPUTS_OF_WHOLE_EXAMPLES)
def test_whole_examples_run(readers_machine, section):
    assert blocks(section)
    for code in blocks(section):
        namespace = {}
        exec(compile(code, f"README.md, {section}", "exec"), namespace)
        if "algo" in namespace:
            assert len(namespace["algo"].get_outputs()) == OUTPUTS_OF_WHOLE_EXAMPLES[section]
            assert namespace["algo"].get_output(1).get_mask().shape == TRUCK[::-1]


def test_every_python_block_is_tried():
    tried = sum(len(blocks(section)) for section in [*OUTPUTS_OF_WHOLE_EXAMPLES, *OUTPUTS_OF_SNIPPETS, "Many images"])
    assert tried == (README + ENGINE_README).count("```python")


@pytest.mark.parametrize("section", OUTPUTS_OF_SNIPPETS)
def test_snippets_of_prompts_run(readers_machine, section):
    for code in blocks(section):
        workflow = Workflow()
        algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
        exec(compile(code, f"README.md, {section}", "exec"), {"algo": algorithm})
        workflow.run_on(array=cv2.imread(str(readers_machine)))
        outputs = algorithm.get_outputs()[1:]
        assert len(outputs) == OUTPUTS_OF_SNIPPETS[section]
        masks = [output.get_mask() for output in outputs if isinstance(output, dataprocess.CSemanticSegmentationIO)]
        assert all(mask.shape == TRUCK[::-1] for mask in masks)
        assert len(masks) == len(outputs) - ("instance_output" in code)


def test_the_folder_run_is_saved(readers_machine, tmp_path, monkeypatch):
    """The other block of its section is tried where its dataset is, in test_ray_folder.py."""
    (tmp_path / "photos").mkdir()
    Image.open(readers_machine).resize((180, 120)).save(tmp_path / "photos" / "flower.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("Many images")[0], "README.md, Many images", "exec"), {})
    assert list((tmp_path / "results").rglob("*flower.json"))


def test_the_table_of_parameters_is_complete(algorithm):
    names = re.findall(r"^\| `(\w+)` \|", SECTIONS["Parameters"], re.MULTILINE)
    assert sorted(names) == sorted(algorithm.get_parameters())


TROUBLE = {
    "no such file": {"model_weight_file": "/nowhere/sam3.pt", "input_point": "[5, 5]"},
    "a cut download": {"model_weight_file": "cut.pt", "input_point": "[5, 5]"},
    "a hole": {"model_weight_file": "hole.pt", "input_point": "[5, 5]"},
    "malformed": {"input_box": "[[425, 600, 700, 875]"},
    "no area": {"input_box": "[700, 600, 425, 875]"},
    "outside": {"input_point": "[520, 375]"},
    "labels": {"input_point": "[[500, 375], [1125, 625]]", "input_point_label": "[1]"},
    "no GPU": {"cuda": True, "input_point": "[5, 5]"},
    "text before box": {"input_text": "shoe", "input_box": "[1, 1, 50, 50]"},
    "nothing found": {"input_text": "shoe", "confidence_threshold": 1},
}


@pytest.fixture
def reported(small_checkpoint, monkeypatch, tmp_path, caplog):
    """What users are told in each kind of trouble: errors, warnings, descriptions."""
    monkeypatch.chdir(tmp_path)
    data = small_checkpoint.read_bytes()
    Path("cut.pt").write_bytes(data[:100_000])
    Path("hole.pt").write_bytes(data[:400_000] + bytes(4096) + data[404_096:])
    told = []
    for parameters in TROUBLE.values():
        plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
        try:
            told += [output.description for output in plugin.segment(np.zeros((360, 480, 3), np.uint8), **parameters)]
        except RuntimeError as error:
            told.append(str(error))

    refused = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    for error in (GatedRepoError("gated", response=refused), LocalEntryNotFoundError("offline")):
        monkeypatch.setattr("huggingface_hub.hf_hub_download", mock.Mock(side_effect=error))
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        with pytest.raises(WeightsError) as caught:
            find_checkpoint("", tmp_path)
        told.append(str(caught.value))
    told.append(str(DeviceMemoryError(torch.device("cuda", 0))))
    return told + [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_every_message_of_troubleshooting_is_a_real_one(reported):
    quoted = re.findall(r"^\| `(.*?)` \|", SECTIONS["Troubleshooting"], re.MULTILINE)
    assert len(quoted) == len(TROUBLE) + 3
    for message in quoted:
        pattern = ".*".join(map(re.escape, message.split("...")))
        assert any(re.fullmatch(pattern, text) for text in reported), (message, reported)


def test_every_picture_is_there():
    pictures = re.findall(r"!\[[^]]+\]\((.+?)\)", README)
    assert len(pictures) > 5
    assert [picture for picture in pictures if not (REPOSITORY / picture).is_file()] == []
    assert sorted(pictures) == sorted(f"images/{path.name}" for path in (REPOSITORY / "images").iterdir())


def test_every_file_that_is_named_exists():
    (tree,) = re.findall(r"^```\n(.*?)```", SECTIONS["Develop"], re.DOTALL | re.MULTILINE)
    named = re.findall(r"\b(\w+\.py|\w+/)(?=\s|$)", tree)
    assert len(named) > 5
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_module_of_the_engine_is_explained():
    named = re.findall(r"^\| `(\w+\.py)` \|", ENGINE_README, re.MULTILINE)
    present = [path.name for path in (REPOSITORY / "sam3_engine").glob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(present)


@pytest.mark.parametrize("page", ["README.md", "demo/README.md", "benchmarks/README.md", "sam3_engine/README.md"])
def test_every_link_within_the_repository_leads_somewhere(page):
    folder = (REPOSITORY / page).parent
    for file, heading in re.findall(
        r"\]\((?!http)([^)#]*)#?([^)]*)\)", (REPOSITORY / page).read_text(encoding="utf-8")
    ):
        target = folder / file if file else REPOSITORY / page
        assert target.exists(), file
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [found.lower().replace(" ", "-") for found in headings]
