"""The plugin as Ikomia and its HUB see it: information, factories, packaging."""

import importlib
import os
import re
import struct
import subprocess
import sys

import cv2
import pytest
from ikomia import core
from ikomia.dataprocess.registry import ik_registry

from testbed.plugin import PLUGIN, REPOSITORY


@pytest.fixture
def plugin(workflow):
    """Import the plugin's entry point as Ikomia does."""
    return importlib.import_module(f"{PLUGIN}.{PLUGIN}").IkomiaPlugin()


def test_the_information_is_complete(plugin):
    info = plugin.get_process_factory().info
    assert info.name == PLUGIN
    assert info.path == "Plugins/Python/Segmentation"
    assert re.fullmatch(r"\d+\.\d+\.\d+", info.version)
    assert info.authors == "Meta AI Research"
    assert info.year == 2025
    assert info.min_ikomia_version == "0.16.0"
    assert info.min_python_version == "3.11.0"
    assert info.algo_type == core.AlgoType.INFER
    assert info.algo_tasks == "SEMANTIC_SEGMENTATION"
    hardware = info.hardware_config
    assert (hardware.min_ram, hardware.gpu_required, hardware.min_vram) == (16, False, 6)
    for text in (info.short_description, info.description, info.article, info.license, info.keywords, info.repository):
        assert text
    assert (REPOSITORY / info.icon_path).is_file()


def test_the_icon_is_a_small_square_png(plugin):
    data = (REPOSITORY / plugin.get_process_factory().info.icon_path).read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width == height >= 64
    assert len(data) < 100_000


def test_ikomia_lists_the_algorithm_after_first_use(workflow):
    assert PLUGIN in ik_registry.get_algorithms()


def test_every_factory_has_the_name_of_the_plugin(plugin):
    assert plugin.get_process_factory().info.name == PLUGIN
    assert plugin.get_param_factory().name == PLUGIN
    assert plugin.get_widget_factory().name == PLUGIN


@pytest.mark.parametrize(
    "then",
    [
        "plugin.get_process_factory().info.name",
        "plugin.get_process_factory().create(None)",
        "plugin.get_param_factory().create().set_values({'input_text': 'shoe'})",
    ],
)
def test_torch_is_imported_only_when_needed(plugins_directory, then):
    code = f"""
import sys
import ikomia
sys.path.insert(0, {str(plugins_directory / "Python")!r})
from {PLUGIN}.{PLUGIN} import IkomiaPlugin
plugin = IkomiaPlugin()
{then}
assert not {{"torch", "sam3", "huggingface_hub", "PyQt6"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def run_hub_test(workflow, algorithm, photograph, tmp_path):
    """Run the HUB's own test on an image, as the HUB does; return the parameters and the outcome."""

    def run(image=photograph):
        picture = tmp_path / "coco.png"
        cv2.imwrite(str(picture), image)
        workflow.set_image_input(array=image)
        algorithm.set_input(workflow.get_input(0), 0)
        hub_test = importlib.import_module(f"{PLUGIN}.{PLUGIN}_test")
        return hub_test.test(algorithm, {"images": {"detection": {"coco": str(picture)}}})

    return run


def test_the_hub_test_passes_with_the_given_weights(run_hub_test, small_checkpoint, caplog):
    with caplog.at_level("INFO", logger=f"{PLUGIN}.{PLUGIN}_test"):
        parameters, outcome = run_hub_test()
    assert outcome == "OK", outcome
    assert parameters["input_box"] == ""
    assert f"Weights: {small_checkpoint}" in caplog.messages
    assert "RANDOM WEIGHTS" not in caplog.text


def test_the_hub_test_covers_every_parameter(run_hub_test, algorithm):
    hub_test = importlib.import_module(f"{PLUGIN}.{PLUGIN}_test")
    tried = {name for parameters, _ in hub_test.PROMPTS.values() for name in parameters}
    assert tried | {"cuda", "model_weight_file"} == set(algorithm.get_parameters())


def test_the_hub_test_reports_a_failure(run_hub_test, photograph):
    _, outcome = run_hub_test(photograph[:50, :50])  # too small for the points
    assert "outside the image" in outcome


def test_the_hub_test_reports_missing_outputs(run_hub_test, monkeypatch):
    hub_test = importlib.import_module(f"{PLUGIN}.{PLUGIN}_test")
    monkeypatch.setattr(hub_test, "PROMPTS", {"box": ({"input_box": "[10, 10, 150, 150]"}, 2)})
    assert run_hub_test()[1] == "box: 1 outputs follow the image, expected 2"


def test_a_damaged_checkpoint_is_not_replaced_by_random_weights(run_hub_test, algorithm, tmp_path):
    (tmp_path / "sam3.pt").write_bytes(b"not a checkpoint")
    algorithm.set_parameters({"model_weight_file": str(tmp_path / "sam3.pt")})
    with pytest.raises(ValueError, match="not a usable SAM 3 checkpoint"):
        run_hub_test()


@pytest.mark.skipif((REPOSITORY / "weights" / "sam3.pt").exists(), reason="the gated weights are on this machine")
def test_the_hub_test_passes_offline_without_weights_and_warns_about_it(photograph, tmp_path):
    cv2.imwrite(str(tmp_path / "coco.png"), photograph)
    code = f"""
import importlib, logging
logging.basicConfig()
from testbed.plugin import PLUGIN, Plugin
plugin = Plugin(cuda=False)
plugin._workflow.set_image_input(path={str(tmp_path / "coco.png")!r})
plugin.algorithm.set_input(plugin._workflow.get_input(0), 0)
hub_test = importlib.import_module(f"{{PLUGIN}}.{{PLUGIN}}_test")
print(hub_test.test(plugin.algorithm, {{"images": {{"detection": {{"coco": {str(tmp_path / "coco.png")!r}}}}}}})[1])
print(repr(plugin.algorithm.get_parameters()["model_weight_file"]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["OK", "''"]
    assert "RANDOM WEIGHTS: this test uses a small network with random weights" in done.stderr
    assert re.search(r"Reason: .*sam3\.pt", done.stderr)


def test_the_ikomia_installer_reads_the_requirements_in_the_right_order():
    """It reads every matching file in alphabetical order, see ikomia/utils/plugintools.py."""
    taken = sorted(path.name for path in REPOSITORY.iterdir() if re.search("[rR]equirements[0-9]*.txt", path.name))
    assert taken == ["build_requirements.txt", "requirements.txt"]


def test_installed_packages_have_compatible_dependencies():
    subprocess.run([sys.executable, "-m", "pip", "check"], check=True, capture_output=True)
