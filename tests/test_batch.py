"""Many images with Ray: every image exactly once, whatever is killed or broken, and as one process answers."""

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

from sam3_batch.pipeline import _SEGMENTED, Folder, Rows, _bounds, _instance, coco_rle, label_map_of, overlay_of, record
from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt
from sam3_engine.segments import Segment, bounding_box, label_map, masks_of
from testbed.plugin import REPOSITORY
from testbed.scenes import draw_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CPU = torch.device("cpu")
PROMPT = ("--input_text", "shape", "--confidence_threshold", "0.4", "--iou_threshold", "0.8")


# --- masks and pictures


@pytest.fixture(scope="module")
def segments():
    """Of an image of 90 x 60 pixels, overlapping, one of them empty."""
    random = np.random.default_rng(5)
    logits = torch.nn.functional.avg_pool2d(torch.tensor(random.normal(0, 1, (6, 20, 30))), 5, 1, 2) + 0.05
    logits[3] = -1
    scores = random.permutation(6) / 10 + 0.2
    return [Segment(one.float(), 90, 60, float(score), "shoe") for one, score in zip(logits, scores, strict=True)]


@pytest.fixture(scope="module")
def instances(segments):
    return [_instance("shoe", one.score, mask) for one, mask in zip(segments, masks_of(segments), strict=True)]


def test_masks_become_cocos_encoding_and_come_back(segments, instances):
    assert [int(one.mask.any()) for one in segments] == [1, 1, 1, 0, 1, 1]
    for segment, instance in zip(segments, instances, strict=True):
        encoded = coco_rle(instance, 60, 90)
        assert encoded["size"] == [60, 90]
        assert isinstance(encoded["counts"], str)
        assert np.array_equal(coco.decode(encoded), segment.mask)
        assert tuple(instance["box"]) == bounding_box(segment.mask)


def test_the_label_map_is_the_plugins(segments, instances):
    assert np.array_equal(label_map_of(instances, 60, 90), label_map(segments, 90, 60))


def test_a_label_map_of_a_crowd_has_16_bits(instances):
    crowd = instances[:1] * 300
    assert label_map_of(crowd[:255], 60, 90).dtype == np.uint8
    numbers = label_map_of(crowd, 60, 90)
    assert numbers.dtype == np.uint16
    assert np.unique(numbers).tolist() == [0, 1]  # of equal scores the first wins


def test_an_overlay_tints_the_instances_and_nothing_else(segments, instances):
    picture = np.full((60, 90, 3), 100, np.uint8)
    tinted = overlay_of(instances, picture)
    covered = np.any([one.mask for one in segments], axis=0)
    assert np.array_equal((tinted != picture).any(axis=2), covered)
    assert (picture == 100).all()


# --- folders and the dataset


@pytest.mark.parametrize("scheme", ["", "file://", "local://"], ids=["path", "pyarrow's", "fsspec's"])
def test_a_folder_is_read_and_written(tmp_path, scheme):
    folder = Folder(f"{scheme}{tmp_path.as_posix()}/new") / "deep"
    assert not folder.exists("")
    folder.write("b/c.txt", b"one")
    folder.write("b/c.txt", b"two")
    folder.write("a.txt", b"three")
    assert folder.files() == ["a.txt", "b/c.txt"]
    assert folder.read("b/c.txt") == b"two"
    assert folder.exists("b")
    with pytest.raises(OSError, match="nowhere"):
        folder.read("nowhere")


def test_a_file_of_the_dataset_that_was_not_finished_is_no_part_of_it(tmp_path, instances):
    rows = Rows(Folder(str(tmp_path)))
    assert rows.paths() == set()
    row = {"path": "a.png", "width": 90, "height": 60, "error": None, "seconds": 0.1, "instances": instances}
    segmented = pa.Table.from_pylist([row, {**row, "path": "b.png", "error": "broken", "instances": None}], _SEGMENTED)
    rows.add(record(segmented, Folder(str(tmp_path)), label_maps=False, overlays=False))
    assert rows.paths() == set()
    rows.flush()
    (file,) = (tmp_path / "instances").iterdir()
    (tmp_path / "instances" / "_unfinished").write_bytes(file.read_bytes()[:100])
    assert rows.paths() == {"a.png", "b.png"}
    assert (rows.count, rows.failures, rows.instances) == (2, 1, 6)


@pytest.mark.parametrize(("text", "bounds"), [("3", (3, 3)), ("1-8", (1, 8))])
def test_numbers_of_workers(text, bounds):
    assert _bounds(text) == bounds


# --- the command


def command(source, output, *options):
    words = [sys.executable, "-m", "sam3_batch", source, output, *options]
    return subprocess.Popen(words, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to segment: give --input_text, --input_box or --input_point"),
        (("--input_box", "[[1, 2"), "input_box = '[[1, 2': "),
        (("--input_text", "shoe", "--confidence_threshold", "7"), "confidence_threshold = '7': expected a number"),
        (("--input_text", "shoe", "--workers", "3-2"), "'3-2': expected such as 4, or 1-8"),
        (("--input_text", "shoe", "--model_weight_file", "none.pt"), "model_weight_file = 'none.pt': there is no such"),
    ],
)
def test_a_wrong_command_is_refused_at_once(tmp_path, options, message):
    (tmp_path / "in").mkdir()
    _, said = command(tmp_path / "in", tmp_path / "out", *options).communicate(timeout=60)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_weights_that_are_none_end_the_run_with_their_error(scenes, tmp_path):
    (tmp_path / "none.pt").write_text("these are no weights")
    options = ("--input_text", "shoe", "--model_weight_file", tmp_path / "none.pt")
    process = command(scenes, tmp_path / "out", *options)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "none.pt is not a usable SAM 3 checkpoint" in said
    assert "Traceback" not in said


def test_results_among_the_images_are_refused(tmp_path, shapes_checkpoint):
    options = ("--input_text", "shoe", "--model_weight_file", shapes_checkpoint)
    _, said = command(tmp_path, tmp_path / "results", *options).communicate(timeout=60)
    assert "is in" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("other", "held"), [("a", True), ("a/b", True), ("ab", False), (".", False)])
def test_which_folder_holds_which(tmp_path, other, held):
    assert Folder(str(tmp_path / "a")).holds(Folder(f"file://{(tmp_path / other).resolve().as_posix()}")) == held


def test_another_prompt_needs_another_output(tmp_path, shapes_checkpoint):
    (tmp_path / "in").mkdir()
    for phrase, message in (("shoe", "0 images"), ("hat", "has the rows of another run, of input_text = 'shoe'")):
        options = ("--input_text", phrase, "--model_weight_file", shapes_checkpoint)
        said = command(tmp_path / "in", tmp_path / "out", *options).communicate(timeout=120)
        assert message in "".join(said)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of 200 images, three of them broken, and some other files."""
    folder = tmp_path_factory.mktemp("scenes")
    random = np.random.default_rng(20)
    for number in range(200):
        path = folder / f"{number % 7}" / f"{number}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(draw_scene(random, 160, 128).image).save(path)
    whole = (folder / "4" / "11.webp").read_bytes()
    for name, content in (("4/11.webp", whole[:100]), ("5/12.png", b""), ("6/13.jpg", b"this is no picture")):
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def alone(scenes, shapes_checkpoint):
    """What one process finds in each image, by the path inside the folder: labels, scores, boxes, masks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker, lest sums be rounded otherwise
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
            predictor.encode_image(image), ConceptPrompt(("shape",)), confidence_threshold=0.4, iou_threshold=0.8
        )
        found[name] = [(one.label, one.score, list(bounding_box(one.mask)), one.mask.tobytes()) for one in segments]
    torch.set_num_threads(threads)
    return found


def listen(lines, said, reached):
    """Note what a run says, and set the events of ``reached`` when it has so many rows."""
    for line in lines:
        said.append(line)
        count = int(line.split()[0]) if " of 200 images, " in line else 0
        for least, event in reached.items():
            if count >= least:
                event.set()


def workers_of(process):
    """The processes that hold the models."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapWorker" in child.name() + "".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            pass


@pytest.fixture
def interruptible():
    """Processes that are started meanwhile take SIGINT, even where the tests do not: a job in the background, say."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT, which Windows has not")
def test_every_image_is_there_once_although_a_worker_is_killed_and_the_run_stopped(
    scenes, alone, shapes_checkpoint, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "results"
    options = (*PROMPT, "--model_weight_file", shapes_checkpoint, "--workers", "2", "--label_maps")
    rows = Rows(Folder(str(output)))
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
    assert "start again to go on" in "".join(said)
    done = rows.paths()
    assert 20 <= len(done) < 200

    second = command(scenes, output, *options)
    printed, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    assert f"200 images, of which {len(done)} have a row; 1 other files" in errors
    assert f"{200 - len(done)} images, " in printed

    table = Folder(str(output / "instances")).dataset().to_table().to_pylist()
    assert sorted(row["path"] for row in table) == sorted(alone)
    for row in table:
        wanted = alone[row["path"]]
        if wanted is None:
            assert (row["status"], row["instances"], row["width"]) == ("error", None, None)
            assert "<" not in row["error"]
        else:
            assert (row["status"], row["width"], row["height"]) == ("ok", 160, 128)
            assert [in_full(instance) for instance in row["instances"]] == wanted
    assert sum(row["status"] == "error" for row in table) == 3
    assert len(list((output / "label_maps").glob("*/*.png"))) == 197

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*results/instances.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md, Many images", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == sum(len(found or ()) for found in alone.values())


def in_full(instance):
    """An instance of the dataset, its mask decoded."""
    mask = coco.decode(instance["mask"]).astype(bool)
    return instance["label"], instance["score"], instance["box"], mask.tobytes()
