"""Video files and streams: every frame has its own results, for the next task, too, and memory does not grow."""

import ast
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from ikomia import core, dataio, dataprocess
from ikomia.dataprocess.workflow import Workflow

from testbed.plugin import PLUGIN, REPOSITORY
from tests.support import pages
from tests.support.videos import write_video

pytestmark = pytest.mark.usefixtures("plugins_directory")

WIDTH, HEIGHT = 320, 240
FRAMES = 6
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
PAGE = pages.read("docs/videos.md")
LONG, WARM_UP = 500, 100  # frames
MOST_GROWTH = 20e6  # the masks of 400 frames take 31 MB


def moving_circle(number):
    """Return a frame, (HEIGHT, WIDTH, 3) uint8 RGB."""
    frame = np.full((HEIGHT, WIDTH, 3), 235, np.uint8)
    return cv2.circle(frame, (60 + 30 * number % (WIDTH - 120), HEIGHT // 2), 40, (210, 30, 30), -1)


class Tracker(core.CWorkflowTask):
    """A task with the inputs of Ikomia's trackers, an image and detections, and with one for a mask.

    Attributes:
        seen: the label and the box (left, top, width, height) of each object, for each frame.
        masks: the mask of each frame.
    """

    def __init__(self):
        core.CWorkflowTask.__init__(self, "tracker")
        self.add_input(dataprocess.CImageIO())
        self.add_input(dataprocess.CObjectDetectionIO())
        self.add_input(dataprocess.CSemanticSegmentationIO())
        self.seen = []
        self.masks = []

    def run(self):
        self.begin_task_run()
        objects = self.get_input(1).get_objects()
        self.seen.append([(found.label, tuple(found.box)) for found in objects])
        self.masks.append(self.get_input(2).get_mask().copy())
        self.end_task_run()


@pytest.fixture
def clip(tmp_path):
    """Return a function of a suffix that writes a clip of a red circle that moves to the right."""

    def write(suffix):
        path = tmp_path / f"clip{suffix}"
        write_video(path, map(moving_circle, range(FRAMES)), CODECS[suffix])
        return path

    return write


@pytest.mark.parametrize("suffix", CODECS)
def test_every_frame_has_its_own_results_and_the_next_task_gets_them(shapes_checkpoint, clip, suffix):
    workflow = Workflow()
    algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
    parameters = {"model_weight_file": shapes_checkpoint, "cuda": False, "input_text": "red circle"}
    algorithm.set_parameters({**parameters, "instance_output": True})
    tracker = Tracker()
    workflow.add_task(task=tracker, auto_connect=False)
    workflow.connect_tasks(algorithm, tracker, [(0, 0), (2, 1), (1, 2)])
    workflow.run_on(path=str(clip(suffix)))
    assert len(tracker.seen) == FRAMES
    for number, (seen, mask) in enumerate(zip(tracker.seen, tracker.masks, strict=True)):
        ((label, box),) = seen
        assert label == "red circle"
        circle = circle_of(number)
        np.testing.assert_allclose(box, cv2.boundingRect(circle), atol=4)
        assert (mask & circle).sum() / (mask | circle).sum() > 0.95


def circle_of(number):
    """Return the mask of the circle in a frame, (HEIGHT, WIDTH) uint8, 0 and 1."""
    circle = (moving_circle(number)[:, :, 1] < 100).astype(np.uint8)
    left, _, width, _ = cv2.boundingRect(circle)
    assert left + width < WIDTH
    return circle


def test_the_code_of_the_page_runs(shapes_checkpoint, clip, monkeypatch, capsys):
    path = clip(".mp4")
    monkeypatch.chdir(path.parent)
    namespace = {}
    for _, code in pages.python_blocks("docs/videos.md"):
        code = code.replace('"person"', f'"red circle", "model_weight_file": "{shapes_checkpoint}", "cuda": False')
        exec(compile(code, "docs/videos.md", "exec"), namespace)
    printed = re.findall(r"^red circle .*(\(.*\)|\[.*\])$", capsys.readouterr().out, re.MULTILINE)
    boxes = [ast.literal_eval(box) for box in printed]
    np.testing.assert_allclose(boxes, [cv2.boundingRect(circle_of(number)) for number in range(FRAMES)], atol=4)


def test_ikomia_reads_the_suffixes_that_the_page_names():
    parts = re.search(r"names end in (.+?), in lowercase.(.+?), are refused", PAGE, re.DOTALL).groups()
    read, refused = (re.findall(r"`(\.\w+)`", part) for part in parts)
    known = [dataio.CDataVideoIO.is_video_format(suffix, True) for suffix in (*read, *refused)]
    assert known == [True] * 6 + [False] * 2


@pytest.mark.parametrize("source", ["0", "rtsp://127.0.0.1:9/stream", "http://127.0.0.1:9/stream", "clip.mov"])
def test_other_sources_are_refused_as_the_page_says(clip, monkeypatch, source):
    path = clip(".mp4")
    path.rename(path.with_suffix(".mov"))
    monkeypatch.chdir(path.parent)
    workflow = Workflow()
    workflow.add_task(name=PLUGIN, auto_connect=True)
    with pytest.raises(RuntimeError, match=re.search(r"refused with `(.+?)`", PAGE)[1]):
        workflow.run_on(path=source)


def test_memory_does_not_grow_from_frame_to_frame(small_checkpoint, tmp_path):
    write_video(tmp_path / "clip.avi", map(moving_circle, range(LONG)))
    command = [sys.executable, "-m", "tests.support.video_user", str(small_checkpoint), str(tmp_path / "clip.avi")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert len(measured) == LONG
    assert max(measured[WARM_UP:]) - measured[WARM_UP] < MOST_GROWTH
