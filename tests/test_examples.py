"""The scripts in examples/ run as written, on a photograph and a small network of random weights."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from ikomia import dataprocess
from ikomia.dataprocess.workflow import Workflow
from PIL import Image
from pycocotools.coco import COCO

from testbed.plugin import PLUGIN, REPOSITORY

EXAMPLES = sorted(path.name for path in (REPOSITORY / "examples").glob("*.py"))
MOST_LINES = 60
SMALL_SIZE = (180, 120)  # width and height
TRUCK, SMALL = ("truck.jpg",), ("small.jpg",)  # examples without coordinates use the small picture, which is faster
DEFAULT = ()
RESULTS = "results"  # of a folder run

# arguments of each script and a pattern for its output; the small network finds something for any phrase
RUNS = {
    "boxes_from_detections.py": [
        (TRUCK, r"(?s)truck: .*wheel: .*wheel: .* box 3 of 3"),
        (DEFAULT, r"truck: \d+ pixels"),
    ],
    "coco_annotations.py": [((RESULTS, "window", "wheel"), r"annotations\.json: 2 images, [1-9]\d* objects")],
    "detector_in_workflow.py": [(TRUCK, r"truck \(class 0\): .*\nwheel \(class 1\): .*\nwheel \(class 1\): score 0\.")],
    "engine_without_ikomia.py": [(SMALL, r"(?s)wheel, score 0\..* pixels.*(middle, score .*){3}")],
    "example_boxes.py": [(TRUCK, r"(?s)rear wheel: \d.* x object.*front one: \d.* x wheel")],
    "folder_of_images.py": [(("photos",), r"a\.jpg: [1-9]\d* objects\nb\.png: [1-9]\d* objects")],
    "objects_output.py": [(SMALL, r"(?s)id  label .*\n +1  wheel .*window")],
    "points_with_candidates.py": [(TRUCK, r"(?s)candidate 1 of 3.*candidate 3 of 3.*largest: ")],
    "save_masks_as_png.py": [((*SMALL, "pngs"), r"pngs.001_wheel\.png: score 0\."), (SMALL, r"masks.001_wheel\.png")],
    "several_phrases.py": [(SMALL, r"(?s)wheel: \d.*window: [1-9].*person: \d")],
    "text_prompt.py": [(SMALL, r"(?s)\d+ x wheel.*% of the image"), (DEFAULT, r"\d+ x wheel")],
}


@pytest.fixture
def run(readers_machine, monkeypatch, capsys):
    """Run an example with arguments; return what it prints."""
    with Image.open("truck.jpg") as picture:
        small = picture.resize(SMALL_SIZE)
    small.save("small.jpg")
    Path("photos").mkdir()
    small.save("photos/a.jpg")
    small.rotate(180).save("photos/b.png")

    def run(name, *arguments):
        if RESULTS in arguments:
            run_folder("wheel")
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def run_folder(phrase, confidence_threshold=0.3):
    """Segment the folder of photos with Ikomia, as the docs do."""
    workflow = Workflow()
    algo = workflow.add_task(name=PLUGIN, auto_connect=True)
    algo.set_parameters({"input_text": phrase, "confidence_threshold": confidence_threshold, "instance_output": True})
    workflow.output_folder = RESULTS
    workflow.run_on(folder="photos")


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(run, name):
    for arguments, printed in RUNS[name]:
        assert re.search(printed, run(name, *arguments))


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_short_and_has_a_docstring(name):
    text = (REPOSITORY / "examples" / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < MOST_LINES
    assert re.match(r'"""[A-Z].+\.\n\nUsage: python (-m )?examples[/.]' + name.removesuffix(".py"), text)


def test_masks_are_saved_without_changes(run, readers_machine):
    run("save_masks_as_png.py", "small.jpg", "pngs")
    files = sorted((readers_machine / "pngs").iterdir())
    assert len(files) > 2
    for path in files:
        with Image.open(path) as mask:
            assert (mask.size, mask.mode) == (SMALL_SIZE, "L")
            values = {value for _, value in mask.getcolors()}
            assert values <= ({0, 255} if path.name != "all.png" else set(range(len(files))))


def test_an_unreadable_image_does_not_stop_a_folder(run, readers_machine):
    (readers_machine / "photos" / "a.jpg").write_bytes(b"not an image")
    assert run("folder_of_images.py", "photos").startswith("b.png: ")
    assert "b.png" in (readers_machine / "found.csv").read_text()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_the_annotations_of_a_folder_run_equal_its_saved_objects(run, readers_machine):
    Path("photos", "Höhe").mkdir()
    shutil.copy("small.jpg", "photos/Höhe/猫.jpg")
    run_folder(["größe 42", "wheel"])
    run_folder("wheel", confidence_threshold=1)  # finds nothing
    results = str(readers_machine / RESULTS)
    assert re.search(r"annotations\.json: 6 images, [1-9]\d* objects", run("coco_annotations.py", results, "window"))

    text = Path(results, "annotations.json").read_text("ascii")
    assert list(json.loads(text)) == ["info", "licenses", "annotations", "images", "categories"]
    written = COCO(f"{results}/annotations.json")
    assert {number: category["name"] for number, category in written.cats.items()} in (
        {1: "window", 2: "größe 42", 3: "wheel"},
        {1: "window", 2: "wheel", 3: "größe 42"},
    )
    assert list(written.anns) == list(range(1, len(written.anns) + 1))
    assert sum("猫" in image["file_name"] for image in written.imgs.values()) == 2
    assert sum(not written.imgToAnns[number] for number in written.imgs) == 3
    for number, image in written.imgs.items():
        path = Path(results, image["file_name"])
        with Image.open(path) as picture:
            assert picture.size == (image["width"], image["height"]) == SMALL_SIZE
        objects = dataprocess.CInstanceSegmentationIO()
        objects.load(str(path).removesuffix(".png") + "_objects.json")
        for found, annotation in zip(objects.get_objects(), written.imgToAnns[number], strict=True):
            assert np.array_equal(written.annToMask(annotation), found.mask > 0)
            assert written.cats[annotation["category_id"]]["name"] == found.label
            assert (annotation["score"], annotation["bbox"]) == (found.confidence, found.box)
            assert annotation["area"] == np.count_nonzero(found.mask)
            assert annotation["iscrowd"] == 0
