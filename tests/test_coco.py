"""The annotations of sam3_batch: the whole dataset in COCO's format, whatever happens while it is written."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO

from sam3_batch.coco import write_annotations
from sam3_batch.dataset import DatasetWriter, file_names, open_dataset
from sam3_batch.folders import Folder
from sam3_batch.instances import encode_png
from sam3_batch.schemas import DATASET_SCHEMA
from sam3_batch.workers import Segmenter, choose_prompt, decode_images, encode_rows
from sam3_engine.settings import Settings
from testbed.plugin import REPOSITORY
from testbed.scenes import draw_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

WIDTH, HEIGHT = 40, 30


def instance(label, left, top, right, bottom, score=0.5):
    """Return an instance whose mask is a dashed frame around its box."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    mask[top + 1 : bottom - 1, left + 1 : right - 1] = False
    mask[top + 2 : bottom - 2 : 3] = False
    return {"label": label, "score": score, "box": [left, top, right, bottom], "mask": encoded(mask)}


def encoded(mask):
    rle = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def row(path, *instances, status="ok", size=(WIDTH, HEIGHT)):
    found = list(instances) if status == "ok" else None
    return {"path": path, "width": size[0], "height": size[1], "status": status, "instances": found}


def add(output, *rows):
    """Add rows to a dataset, in a file of their own."""
    add_table(output, pa.Table.from_pylist(list(rows), DATASET_SCHEMA))


def add_table(output, table):
    writer = DatasetWriter(output)
    writer.add(table)
    writer.flush()


@pytest.fixture
def output(tmp_path):
    return Folder(str(tmp_path / "results"))


@pytest.fixture
def written(output):
    """Write the annotations of the dataset and load them."""

    def written(*names):
        write_annotations(output, names)
        return COCO(f"{output.root}/annotations.json")

    return written


SHOE, HAT = instance("shoe", 3, 4, 21, 15, 0.9), instance("hat", 0, 0, 40, 30, 0.25)
EMPTY = {"label": "hat", "score": 0.1, "box": [0, 0, 0, 0], "mask": encoded(np.zeros((HEIGHT, WIDTH)))}


def test_the_annotations_equal_the_dataset(output, written):
    add(output, row("a.jpg", SHOE, HAT, EMPTY), row("broken.jpg", status="error", size=(None, None)))
    add(output, row("deep/nothing.png"), row("deep/b.png", HAT, size=(WIDTH, HEIGHT)))
    annotations = written("shoe", "hat")

    assert list(annotations.dataset) == ["info", "licenses", "images", "annotations", "categories"]
    assert [tuple(image.values()) for image in annotations.dataset["images"]] == [
        (1, "a.jpg", WIDTH, HEIGHT),
        (2, "deep/nothing.png", WIDTH, HEIGHT),
        (3, "deep/b.png", WIDTH, HEIGHT),
    ]
    assert [(one["id"], one["image_id"], one["category_id"]) for one in annotations.dataset["annotations"]] == [
        (1, 1, 1),
        (2, 1, 2),
        (3, 1, 2),
        (4, 3, 2),
    ]
    assert [(one["id"], one["name"]) for one in annotations.dataset["categories"]] == [(1, "shoe"), (2, "hat")]

    instances = [one for found in open_dataset(output).to_table()["instances"].to_pylist() for one in found or []]
    for one, expected in zip(annotations.dataset["annotations"], instances, strict=True):
        mask = coco.decode(expected["mask"])
        assert np.array_equal(annotations.annToMask(one), mask)
        assert one["bbox"] == coco.toBbox(expected["mask"]).tolist()
        assert (one["area"], one["score"], one["iscrowd"]) == (mask.sum(), expected["score"], 0)


def test_ids_stay_the_same_when_rows_are_added(output, written, monkeypatch):
    add(output, row("b.jpg", SHOE), row("a.jpg", HAT))
    before = written("shoe", "hat")
    monkeypatch.setattr("time.strftime", lambda *_: "19700101T000000")  # the clock was set back
    for number in range(12):
        add(output, row(f"0{number}.jpg", HAT, SHOE))
    after = written("shoe", "hat")
    assert before.imgs.items() <= after.imgs.items()
    assert before.anns.items() <= after.anns.items()
    assert [image["file_name"] for image in list(after.imgs.values())[2:]] == [f"0{n}.jpg" for n in range(12)]
    assert len(after.anns) == 26


def test_files_of_earlier_versions_come_first(output, written):
    add(output, row("old.jpg", SHOE))
    (name,) = file_names(output)
    old = f"20261125T171247-{32 * 'f'}.parquet"
    (Folder(f"{output.uri}/instances")).write(old, output.read(f"instances/{name}"))
    output.filesystem.delete_file(f"{output.root}/instances/{name}")
    add(output, row("new.jpg", SHOE))
    assert file_names(output)[0] == old
    assert [image["file_name"] for image in written("shoe").imgs.values()] == ["old.jpg", "new.jpg"]


def test_an_image_is_annotated_once_even_if_two_runs_have_segmented_it(output, written):
    first, second = DatasetWriter(output), DatasetWriter(output)
    for writer, found in ((first, SHOE), (second, HAT)):
        writer.add(pa.Table.from_pylist([row("a.jpg", found), row("b.jpg", found)], DATASET_SCHEMA))
    first.flush()
    second.flush()
    annotations = written("shoe", "hat")
    assert [image["file_name"] for image in annotations.imgs.values()] == ["a.jpg", "b.jpg"]
    assert [one["category_id"] for one in annotations.anns.values()] == [1, 1]


def test_other_labels_follow_the_categories(output, written):
    add(output, row("a.jpg", instance("object", 1, 1, 9, 9), HAT, SHOE))
    assert [(key, one["name"]) for key, one in written("hat").cats.items()] == [(1, "hat"), (2, "object"), (3, "shoe")]


@pytest.mark.parametrize(
    "rows", [[], [row("broken.jpg", status="error")], [row("a.jpg")]], ids=["no", "failed", "empty"]
)
def test_annotations_without_instances_can_be_loaded(output, written, rows):
    if rows:
        add(output, *rows)
    annotations = written("shoe")
    assert len(annotations.imgs) == sum(one["status"] == "ok" for one in rows)
    assert annotations.anns == {}
    assert annotations.cats[1]["name"] == "shoe"


def test_the_file_is_ascii_so_that_it_loads_in_any_encoding(output, written):
    names = ["größe 42/猫.jpg", 'quote".jpg', "back\\slash.jpg", "line\nbreak.jpg", "😀.jpg"]
    add(output, *(row(name, instance("größe 42", 2, 2, 8, 8)) for name in names))
    assert [image["file_name"] for image in written("größe 42").imgs.values()] == names
    assert json.loads(output.read("annotations.json").decode("ascii"))["categories"][0]["name"] == "größe 42"


def test_a_failure_keeps_the_earlier_file(output, written):
    add(output, row("a.jpg", SHOE))
    written("shoe")
    before = output.read("annotations.json")
    (name,) = file_names(output)
    output.write("instances/part-00000002-damaged.parquet", output.read(f"instances/{name}")[:-100])
    with pytest.raises(pa.ArrowInvalid):
        write_annotations(output, ["shoe"])
    assert output.read("annotations.json") == before
    assert [path for path in output.files() if not path.startswith("instances/")] == ["annotations.json"]


@pytest.mark.parametrize(
    ("prompt", "categories"),
    [
        ({"input_text": '["shape", "red circle"]', "confidence_threshold": "0.3"}, ["shape", "red circle"]),
        ({"input_box": "[[20, 20, 80, 80]]", "input_box_label": "[1]", "confidence_threshold": "0"}, ["object"]),
        ({"input_box": "[[20, 20, 80, 80]]", "input_box_label": "[1]", "input_text": "shape"}, ["shape"]),
        ({"input_box": "[[20, 20, 80, 80], [90, 60, 150, 120]]"}, ["object"]),
        ({"input_point": "[[50, 50]]", "multimask_output": "True"}, ["object"]),
    ],
    ids=["phrases", "example box", "phrase and example box", "boxes", "point"],
)
def test_categories_are_the_labels_of_the_prompt(output, written, shapes_checkpoint, tmp_path, prompt, categories):
    source = Folder(str(tmp_path / "in"))
    source.write("one.png", encode_png(draw_scene(np.random.default_rng(20), 160, 128).image))
    settings = Settings().updated({**prompt, "model_weight_file": str(shapes_checkpoint), "cuda": "False"})
    segment = Segmenter(settings, keep_pixels=False)
    segmented = segment(decode_images(pa.table({"path": ["one.png"]}), source))
    rows = encode_rows(segmented, output, label_maps=False, overlays=False)
    add_table(output, rows)
    annotations = written(*choose_prompt(settings).prompt.names)
    assert annotations.anns
    assert [category["name"] for category in annotations.cats.values()] == categories
    labels = [found["label"] for found in rows["instances"][0].as_py()]
    assert [annotations.cats[one["category_id"]]["name"] for one in annotations.anns.values()] == labels


@pytest.fixture(scope="module")
def large_output(tmp_path_factory):
    """Write a dataset of 24,000 masks of noise to one file."""
    random = np.random.default_rng(29)
    noise = ({**SHOE, "mask": encoded(random.random((120, 120)) < 0.5)} for _ in itertools.count())
    rows = [row(f"{name}.jpg", *itertools.islice(noise, 8)) for name in range(3000)]
    output = Folder(str(tmp_path_factory.mktemp("large")))
    add(output, *rows)
    return output


WRITE = """
import sys, pyarrow.dataset, pycocotools.mask
from benchmarks.timing import peak_memory
from sam3_batch.coco import write_annotations
from sam3_batch.folders import Folder
before = peak_memory()
write_annotations(Folder(sys.argv[1]), ["shoe"])
print(peak_memory() - before)
"""


def writing(output):
    """Start a process that writes the annotations and prints how much memory that takes."""
    return subprocess.Popen([sys.executable, "-c", WRITE, output.root], cwd=REPOSITORY, stdout=subprocess.PIPE)


def test_memory_does_not_grow_with_the_annotations(large_output):
    with writing(large_output) as process:
        grown = int(process.stdout.read())
    size = len(large_output.read("annotations.json"))
    assert size > 170e6
    assert grown < size / 3


def test_a_killed_run_keeps_the_earlier_file(large_output):
    large_output.write("annotations.json", b"earlier")
    with writing(large_output) as process:
        while not (unfinished := [path for path in large_output.files() if path.startswith("_")]):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert large_output.read("annotations.json") == b"earlier"
    assert large_output.exists(*unfinished)  # it was killed while it was writing
