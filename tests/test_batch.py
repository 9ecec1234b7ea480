"""Folders of images on Ray: one row per image, as from a single process, even if a worker is killed."""

import dataclasses
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pytest
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO

from sam3_batch.command_line import parse_worker_range
from sam3_batch.dataset import DatasetWriter, check_same_run, open_dataset, recorded_paths
from sam3_batch.folders import Folder
from sam3_batch.instances import PackedInstance, encode_rle, paint_label_map, paint_overlay
from sam3_batch.progress import Progress
from sam3_batch.schemas import SEGMENTED_SCHEMA
from sam3_batch.workers import Segmenter, encode_rows
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, EverythingPrompt
from sam3_engine.segments import Segment, bounding_box, label_map, masks_of
from sam3_engine.settings import Settings
from testbed.layout_files import as_fine_tuned, read_contents, write_torch
from testbed.plugin import REPOSITORY
from testbed.scenes import draw_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CPU = torch.device("cpu")
PROMPT = ("--input_text", "shape", "--confidence_threshold", "0.4", "--iou_threshold", "0.8")


# --- masks and pictures


@pytest.fixture(scope="module")
def segments():
    """Return six overlapping segments of a 90 x 60 image, one of them empty."""
    random = np.random.default_rng(5)
    logits = torch.nn.functional.avg_pool2d(torch.tensor(random.normal(0, 1, (6, 20, 30))), 5, 1, 2) + 0.05
    logits[3] = -1
    scores = random.permutation(6) / 10 + 0.2
    return [Segment(one.float(), 90, 60, float(score), "shoe") for one, score in zip(logits, scores, strict=True)]


@pytest.fixture(scope="module")
def instances(segments):
    return [
        PackedInstance.pack("shoe", segment.score, bounding_box(mask), mask)
        for segment, mask in zip(segments, masks_of(segments), strict=True)
    ]


def test_masks_survive_coco_encoding(segments, instances):
    assert [int(segment.mask.any()) for segment in segments] == [1, 1, 1, 0, 1, 1]
    for segment, instance in zip(segments, instances, strict=True):
        encoded = encode_rle(instance, 60, 90)
        assert encoded["size"] == [60, 90]
        assert isinstance(encoded["counts"], str)
        assert np.array_equal(coco.decode(encoded), segment.mask)
        assert tuple(instance.box) == bounding_box(segment.mask)


def test_the_label_map_matches_the_engine(segments, instances):
    for on_top in (False, True):
        painted = paint_label_map(instances, 60, 90, smallest_on_top=on_top)
        assert np.array_equal(painted, label_map(segments, 90, 60, smallest_on_top=on_top))


def test_a_worker_segments_everything(shapes_checkpoint):
    settings = Settings(
        cuda=False,
        points_per_side=8,
        stability_score_threshold=0.75,
        model_weight_file=str(shapes_checkpoint),
    )
    image = draw_scene(np.random.default_rng(5)).image
    found = Segmenter(settings, keep_pixels=False).predict(image)
    wanted = Predictor(load_model(shapes_checkpoint, CPU)).predict(image, EverythingPrompt(8), settings.options)
    assert [one.mask.tobytes() for one in found] == [one.mask.tobytes() for one in wanted]
    assert {one.label for one in found} == {"object"}


def test_the_label_map_of_classes_matches_the_engine(segments, instances):
    labels = ["shoe", "hat", "shoe", "hat", "coat", "hat"]
    labelled = [dataclasses.replace(one, label=label) for one, label in zip(segments, labels, strict=True)]
    packed = [dataclasses.replace(one, label=label) for one, label in zip(instances, labels, strict=True)]
    classes = ("cat", "hat", "shoe", "coat")
    painted = paint_label_map(packed, 60, 90, classes)
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, label_map(labelled, 90, 60, classes))
    assert set(np.unique(painted)) == {0, 2, 3, 4}
    assert paint_label_map(packed * 50, 60, 90, classes).dtype == np.uint8
    assert not paint_label_map([], 60, 90, classes).any()


def test_a_label_map_with_more_than_255_instances_has_16_bits(instances):
    crowd = instances[:1] * 300
    assert paint_label_map(crowd[:255], 60, 90).dtype == np.uint8
    numbers = paint_label_map(crowd, 60, 90)
    assert numbers.dtype == np.uint16
    assert np.unique(numbers).tolist() == [0, 1]  # of two equal scores, the first wins


def test_an_overlay_tints_only_the_instances(segments, instances):
    image = np.full((60, 90, 3), 100, np.uint8)
    overlay = paint_overlay(instances, image)
    covered = np.any([segment.mask for segment in segments], axis=0)
    assert np.array_equal((overlay != image).any(axis=2), covered)
    assert (image == 100).all()


# --- folders and the dataset


@pytest.mark.parametrize("scheme", ["", "file://", "local://"], ids=["path", "pyarrow's", "fsspec's"])
def test_files_can_be_written_listed_and_read(tmp_path, scheme):
    folder = Folder(f"{scheme}{tmp_path.as_posix()}/new") / "deep"
    assert not folder.exists()
    folder.write("b/c.txt", b"one")
    folder.write("b/c.txt", b"two")
    folder.write("a.txt", b"three")
    assert folder.files() == ["a.txt", "b/c.txt"]
    assert folder.read("b/c.txt") == b"two"
    assert folder.exists("b")
    with pytest.raises(OSError, match="nowhere"):
        folder.read("nowhere")


def test_unfinished_files_are_not_part_of_the_dataset(tmp_path, instances):
    output = Folder(str(tmp_path))
    writer = DatasetWriter(output)
    assert recorded_paths(output) == set()
    found = [vars(instance) for instance in instances]
    row = {"path": "a.png", "width": 90, "height": 60, "error": None, "seconds": 0.1, "instances": found}
    failed = {**row, "path": "b.png", "error": "broken", "instances": None}
    segmented = pa.Table.from_pylist([row, failed], SEGMENTED_SCHEMA)
    rows = encode_rows(segmented, output, label_maps=False, overlays=False)
    writer.add(rows)
    assert recorded_paths(output) == set()
    writer.flush()
    (file,) = (tmp_path / "instances").iterdir()
    (tmp_path / "instances" / "_unfinished").write_bytes(file.read_bytes()[:100])
    assert recorded_paths(output) == {"a.png", "b.png"}
    assert Progress(remaining=3).after(rows) == Progress(images=2, failures=1, instances=6, remaining=1)


def test_an_output_folder_accepts_one_set_of_parameters(tmp_path):
    output = Folder(str(tmp_path / "new"))
    check_same_run(output, {"input_text": "shoe", "input": "photos"}, {})
    check_same_run(output, {"input_text": "shoe", "input": "photos"}, {})
    with pytest.raises(ValueError, match="holds the results of another run, with input_text = 'shoe': choose another"):
        check_same_run(output, {"input_text": "hat", "input": "photos"}, {})


def test_a_run_of_an_earlier_version_continues_with_the_defaults_of_newer_parameters(tmp_path):
    output, defaults = Folder(str(tmp_path / "new")), {"input_text": "", "min_region_percent": "0.0"}
    check_same_run(output, {"input_text": "shoe"}, {"input_text": ""})
    check_same_run(output, {"input_text": "shoe", "min_region_percent": "0.0"}, defaults)
    with pytest.raises(ValueError, match=r"of another run, with min_region_percent = '0\.0': choose another"):
        check_same_run(output, {"input_text": "shoe", "min_region_percent": "1.0"}, defaults)


@pytest.mark.parametrize(("other", "contained"), [("a", True), ("a/b", True), ("ab", False), (".", False)])
def test_a_folder_contains_itself_and_its_subfolders(tmp_path, other, contained):
    other = Folder(f"file://{(tmp_path / other).resolve().as_posix()}")
    assert Folder(str(tmp_path / "a")).contains(other) == contained


@pytest.mark.parametrize(("text", "smallest_and_largest"), [("3", (3, 3)), ("1-8", (1, 8))])
def test_workers_are_a_number_or_a_range(text, smallest_and_largest):
    assert parse_worker_range(text) == smallest_and_largest


# --- the command


def command(source, output, *options):
    words = [sys.executable, "-m", "sam3_batch", source, output, *options]
    return subprocess.Popen(words, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to segment: set --input_text, --input_box, --input_point or --points_per_side"),
        (("--input_box", "[[1, 2"), "input_box = '[[1, 2': "),
        (("--input_text", "shoe", "--confidence_threshold", "7"), "confidence_threshold = '7': expected a number"),
        (("--input_text", "shoe", "--workers", "3-2"), "'3-2': expected a number such as 4, or a range such as 1-8"),
        (("--input_text", "shoe", "--model_weight_file", "no.pt"), "model_weight_file = 'no.pt': there is no such"),
    ],
)
def test_an_invalid_command_is_rejected_before_it_writes(tmp_path, options, message):
    (tmp_path / "in").mkdir()
    _, said = command(tmp_path / "in", tmp_path / "out", *options).communicate(timeout=60)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_a_checkpoint_ends_the_run_with_its_error(scenes, tmp_path):
    (tmp_path / "bad.pt").write_text("not a checkpoint")
    options = ("--input_text", "shoe", "--model_weight_file", tmp_path / "bad.pt")
    process = command(scenes, tmp_path / "out", *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "bad.pt is not a usable SAM 3 checkpoint" in said
    assert "Traceback" not in said


def test_a_checkpoint_that_does_not_answer_the_prompt_ends_the_run_without_rows(scenes, shapes_checkpoint, tmp_path):
    contents = read_contents(shapes_checkpoint)
    tuned = write_torch(tmp_path / "tuned.pt", as_fine_tuned(contents.tensors), contents.architecture)
    process = command(scenes, tmp_path / "out", "--input_point", "[[20, 20], [30, 30]]", "--model_weight_file", tuned)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "input_point = '[[20, 20], [30, 30]]': tuned.pt is a SAM 3 detector without click head. " in said
    assert "Traceback" not in said
    assert recorded_paths(Folder(str(tmp_path / "out"))) == set()


def test_results_inside_the_image_folder_are_rejected(tmp_path, shapes_checkpoint):
    options = ("--input_text", "shoe", "--model_weight_file", shapes_checkpoint)
    _, said = command(tmp_path, tmp_path / "results", *options).communicate(timeout=60)
    assert "is inside" in said
    assert not (tmp_path / "results").exists()


def test_a_different_prompt_needs_a_different_output_folder(tmp_path, shapes_checkpoint):
    (tmp_path / "in").mkdir()
    results = []
    for phrase in ("shoe", "hat"):
        options = ("--input_text", phrase, "--model_weight_file", shapes_checkpoint, "--coco")
        results.append(command(tmp_path / "in", tmp_path / "out", *options).communicate(timeout=120))
    (printed, messages), (_, rejection) = results
    assert "0 images" in messages
    assert printed.splitlines()[-1] == f"Results: {tmp_path / 'out'}/instances"  # even if all was done
    assert "holds the results of another run, with input_text = 'shoe'" in rejection
    assert "Traceback" not in rejection
    assert COCO(tmp_path / "out" / "annotations.json").cats[1]["name"] == "shoe"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Create a folder of 200 images, three of them broken, and a text file."""
    folder = tmp_path_factory.mktemp("scenes")
    random = np.random.default_rng(20)
    for number in range(200):
        path = folder / f"{number % 7}" / f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(draw_scene(random, 160, 128).image).save(path)
    whole = (folder / "4" / "11.webp").read_bytes()
    for name, content in (("4/11.webp", whole[:100]), ("5/12.png", b""), ("6/13.jpg", b"not an image")):
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def alone(scenes, shapes_checkpoint):
    """Return the labels, scores, boxes and masks that one process finds in each image; None for a broken image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker; the number of threads affects rounding
    predictor = Predictor(load_model(shapes_checkpoint, CPU))
    found = {}
    for path in scenes.glob("*/*"):
        name = path.relative_to(scenes).as_posix()
        try:
            image = PIL.Image.open(path).convert("RGB")
        except OSError:
            found[name] = None
            continue
        segments = predictor.segment(
            predictor.encode_image(image),
            ConceptPrompt(("shape",)),
            Options(confidence_threshold=0.4, iou_threshold=0.8),
        )
        found[name] = [(one.label, one.score, list(bounding_box(one.mask)), one.mask.tobytes()) for one in segments]
    torch.set_num_threads(threads)
    return found


def listen(lines, said, reached):
    """Collect the messages of a run, and set each event in ``reached`` once the run has that many rows."""
    for line in lines:
        said.append(line)
        count = int(line.split()[0]) if " of 200 images, " in line else 0
        for least, event in reached.items():
            if count >= least:
                event.set()


def workers_of(process):
    """Return the processes that hold the models."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapWorker" in child.name() + "".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            pass


@pytest.fixture
def interruptible():
    """Let child processes receive SIGINT even if the tests ignore it, for example in a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT, which Windows does not have")
def test_each_image_gets_one_row_even_if_a_worker_is_killed_and_the_run_interrupted(
    scenes, alone, shapes_checkpoint, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "results"
    options = (*PROMPT, "--model_weight_file", shapes_checkpoint, "--workers", "2", "--label_maps", "--coco")
    reached = {count: threading.Event() for count in (1, 20)}

    said = []
    with command(scenes, output, *options) as first:
        listener = threading.Thread(target=listen, args=(first.stderr, said, reached))
        listener.start()
        assert reached[1].wait(120), said
        victim = next(workers_of(first))
        victim.kill()
        assert reached[20].wait(120), said
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 1
        listener.join(60)
    assert "Run the same command again to continue" in "".join(said)
    done = recorded_paths(Folder(str(output)))
    assert 20 <= len(done) < 200
    interrupted = COCO(output / "annotations.json")
    assert {image["file_name"] for image in interrupted.imgs.values()} == {
        path for path in done if alone[path] is not None
    }

    second = command(scenes, output, *options)
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert f"200 images, {len(done)} already in the dataset; 1 other files ignored" in errors
    assert f"{200 - len(done)} images, " in printed
    assert printed.splitlines()[-2:] == [f"Annotations: {output}/annotations.json", f"Results: {output}/instances"]

    table = open_dataset(Folder(str(output))).to_table().to_pylist()
    assert sorted(row["path"] for row in table) == sorted(alone)
    for row in table:
        expected = alone[row["path"]]
        if expected is None:
            assert (row["status"], row["instances"], row["width"]) == ("error", None, None)
            assert "<" not in row["error"]
        else:
            assert (row["status"], row["width"], row["height"]) == ("ok", 160, 128)
            assert [with_mask(instance) for instance in row["instances"]] == expected
    assert sum(row["status"] == "error" for row in table) == 3
    assert len(list((output / "label_maps").glob("*/*.png"))) == 197

    annotated = COCO(output / "annotations.json")
    assert interrupted.imgs.items() <= annotated.imgs.items()
    assert interrupted.anns.items() <= annotated.anns.items()
    masks = {
        image["file_name"]: [annotated.annToMask(one).astype(bool).tobytes() for one in annotated.imgToAnns[number]]
        for number, image in annotated.imgs.items()
    }
    assert masks == {path: [mask for *_, mask in found] for path, found in alone.items() if found is not None}

    page = (REPOSITORY / "docs" / "many_images.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n([^`]*\"results/(?:instances|annotations).*?)```", page, re.DOTALL)
    assert len(codes) == 2
    monkeypatch.chdir(tmp_path)
    for code in codes:
        capsys.readouterr()
        exec(compile(code, "docs/many_images.md", "exec"), {})
        printed = [line for line in capsys.readouterr().out.splitlines() if " shape " in line]
        assert len(printed) == sum(len(found or ()) for found in alone.values())


def with_mask(instance):
    """Return the fields of an instance of the dataset, with its mask decoded."""
    mask = coco.decode(instance["mask"]).astype(bool)
    return instance["label"], instance["score"], instance["box"], mask.tobytes()
