"""What Ikomia saves by itself, in folder runs and of videos, and what users save: every mask in a file of its own."""

import importlib
import itertools
import json
import logging
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from ikomia import core, dataprocess
from ikomia.dataprocess.workflow import Workflow

from testbed.plugin import PLUGIN
from tests.support.videos import write_video

pytestmark = pytest.mark.usefixtures("plugins_directory")

BOXES = [[10, 15, 75, 80], [2, 2, 150, 100]]
TWO_MASKS_AND_OBJECTS = {"input_box": BOXES, "instance_output": True}


@pytest.fixture
def images(photograph):
    """Return an endless supply of different (h, w, 3) uint8 RGB images that are all at least 155 x 103 pixels."""
    return (np.ascontiguousarray(photograph[k::4, ::4][:103]) for k in itertools.cycle(range(0, 12)))


@pytest.fixture
def segment(small_checkpoint, plugins_directory):
    """Return a function that runs the plugin in a new workflow and returns its outputs as arrays."""

    def run(parameters, **image):
        workflow, algorithm = new_workflow(small_checkpoint, parameters)
        workflow.run_on(**image)
        return contents(algorithm.get_outputs()[1:])

    return run


def new_workflow(checkpoint, parameters, folder=None):
    workflow = Workflow()
    algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
    parameters = {"model_weight_file": checkpoint, "cuda": False, **parameters}
    workflow.set_parameters(parameters, task_obj=algorithm)
    if folder:
        workflow.output_folder = f"{folder}/"
    return workflow, algorithm


def contents(outputs):
    """Return what is in mask and objects outputs, for comparisons."""
    return [
        (output.get_class_names(), output.get_colors(), output.get_mask().tolist())
        if isinstance(output, dataprocess.CSemanticSegmentationIO)
        else [
            (found.id, found.label, found.confidence, found.box, found.color[:3], found.mask.tolist())
            for found in output.get_objects()
        ]
        for output in outputs
    ]


def loaded(path):
    kind = (
        dataprocess.CInstanceSegmentationIO if path.stem.endswith("_objects") else dataprocess.CSemanticSegmentationIO
    )
    output = kind()
    output.load(str(path))
    return contents([output])[0]


def written(folder):
    """Return the files below a folder of results, by their name after that of the plugin."""
    return {path.name.removeprefix(PLUGIN): path for path in folder.rglob("*") if path.is_file()}


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


FOLDERS = {
    "a number or a word at the end": ["photo.png", "photo_2.png", "X.png", "X_objects.png", "IMG_1234.png"],
    "the same name": ["a.png", "a.jpg", "sub/a.png", "sub/a.jpg", "sub/deeper/a.png", "deeper/a.png", "sub_a.png"],
    "dots and letter case": ["2024.06.01 site A.png", "2024.07.02 site A.png", "A.png", "a.png", "ü 1.png", ".x.png"],
    "names that look like chosen ones": ["in_a.jpg.png", "a.png", "a.jpg", "in_a.jpg (2).png", "a_2_2.png", "a_2.png"],
}


@pytest.mark.parametrize("names", FOLDERS.values(), ids=FOLDERS)
def test_every_mask_of_every_image_of_a_folder_is_in_a_file_of_its_own(
    segment, small_checkpoint, images, tmp_path, names
):
    for name in names:
        write(tmp_path / "in" / name, next(images))
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")

    workflow.run_on(folder=str(tmp_path / "in"))

    files = written(tmp_path / "out")
    assert len(files) == 4 * len(names)
    copies = {name.removesuffix(".png"): cv2.imread(str(path)) for name, path in files.items() if name.endswith(".png")}
    for name in names:
        source = tmp_path / "in" / name
        image = cv2.imread(str(source))
        (base,) = [base for base, copy in copies.items() if np.array_equal(copy, image)]
        assert source.stem in base
        saved = [loaded(files[base + end]) for end in (".json", "_objects.json", "_2.json")]
        assert saved == segment(TWO_MASKS_AND_OBJECTS, path=str(source))


def test_names_that_only_one_image_asks_for_are_those_of_ikomia(small_checkpoint, images, tmp_path):
    for name in ("photo.png", "photo_2.png", "IMG_1234.jpg", "sub/b.png"):
        write(tmp_path / "in" / name, next(images))
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES[0]}, tmp_path / "out")
    workflow.run_on(folder=str(tmp_path / "in"))
    bases = ("photo", "photo_2", "IMG_1234", "b")
    assert set(written(tmp_path / "out")) == {base + end for base in bases for end in (".png", ".json")}


def test_a_second_run_into_the_same_folder_overwrites_nothing(segment, small_checkpoint, images, tmp_path):
    first, second = next(images), next(images)
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(True)
    workflow.run_on(array=first)
    before = {name: path.read_bytes() for name, path in written(tmp_path / "out").items()}
    workflow.set_image_input(array=second, index=0)
    dataprocess.CWorkflow.run(workflow)  # run_on() may start a new folder, which is named after the second
    after = written(tmp_path / "out")
    assert sorted(after) == sorted(
        base + end for base in ("empty", "empty (2)") for end in (".png", ".json", "_2.json", "_objects.json")
    )
    assert {name: after[name].read_bytes() for name in before} == before
    saved = [loaded(after[f"empty (2){end}"]) for end in (".json", "_objects.json", "_2.json")]
    assert saved == segment(TWO_MASKS_AND_OBJECTS, array=second)


def test_files_have_the_bytes_that_ikomia_writes(small_checkpoint, images, tmp_path):
    image = next(images)
    workflow, algorithm = new_workflow(small_checkpoint, {"input_box": BOXES[0]}, tmp_path / "out")
    workflow.set_auto_save(True)
    workflow.run_on(array=image)
    files = written(tmp_path / "out")
    dataprocess.CSemanticSegmentationIO.save(algorithm.get_output(1), str(tmp_path / "mask.json"))
    dataprocess.CImageIO.save(algorithm.get_output(0), str(tmp_path / "image.png"))
    assert files["empty.json"].read_bytes() == (tmp_path / "mask.json").read_bytes()
    assert files["empty.png"].read_bytes() == (tmp_path / "image.png").read_bytes()


def test_outputs_that_ikomia_is_told_not_to_save_are_not_saved(small_checkpoint, images, tmp_path):
    workflow, algorithm = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(True)
    algorithm.get_output(0).auto_save = False
    workflow.run_on(array=next(images))
    files = {"empty.json", "empty_2.json", "empty_objects.json"}
    assert set(written(tmp_path / "out")) == files
    workflow.set_auto_save(False)
    workflow.run_on(array=next(images))
    assert set(written(tmp_path / "out")) == files


def test_a_folder_run_continues_after_a_broken_image(small_checkpoint, images, tmp_path, caplog):
    for name in ("a.png", "c.png"):
        write(tmp_path / "in" / name, next(images))
    (tmp_path / "in" / "b.png").write_bytes(b"this is no picture")
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES}, tmp_path / "out")
    workflow.run_on(folder=str(tmp_path / "in"))
    expected = {base + end for base in "ac" for end in (".png", ".json", "_2.json")}
    assert set(written(tmp_path / "out")) == expected
    assert sum("processing b.png" in message for message in caplog.messages) == 1


def test_a_stopped_run_saves_nothing(segment, small_checkpoint, images, tmp_path, monkeypatch):
    workflow, algorithm = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(True)
    image = next(images)
    with monkeypatch.context() as patched:
        patched.setattr(algorithm, "emit_step_progress", algorithm.stop, raising=False)
        workflow.run_on(array=image)
    assert written(tmp_path / "out") == {}
    workflow.run_on(array=image)
    assert loaded(written(tmp_path / "out")["empty_objects.json"]) == segment(TWO_MASKS_AND_OBJECTS, array=image)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("fitting", [0, 2], ids=["none fits", "two fit"])
def test_files_that_do_not_all_fit_on_the_disk_are_an_error_and_none_is_left_behind(
    segment, small_checkpoint, images, tmp_path, fitting
):
    import resource

    workflow, algorithm = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(True)
    algorithm.get_output(0).auto_save = False
    image = next(images)
    workflow.run_on(array=image)
    sizes = {name: path.stat().st_size for name, path in written(tmp_path / "out").items()}
    assert max(sizes, key=sizes.get) == "empty_objects.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sorted(sizes.values())[fitting] - 1, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="File too large"):
            dataprocess.CWorkflow.run(workflow)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: path.stat().st_size for name, path in written(tmp_path / "out").items()} == sizes
    dataprocess.CWorkflow.run(workflow)
    saved = [loaded(written(tmp_path / "out")[f"empty (2){end}"]) for end in (".json", "_objects.json", "_2.json")]
    assert saved == segment(TWO_MASKS_AND_OBJECTS, array=image)


FILES = (".png", ".json", "_objects.json", "_2.json")


def base_names(folder, sources):
    """Return the name that the files of each image have in common."""
    files = written(folder)
    bases = {name.removesuffix(".png"): cv2.imread(str(path)) for name, path in files.items() if name.endswith(".png")}
    assert set(files) == {base + end for base in bases for end in FILES}
    assert len(bases) == len(sources)
    images = [cv2.imread(str(source)) for source in sources]
    return [next(base for base, copy in bases.items() if np.array_equal(copy, image)) for image in images]


def test_names_that_are_too_long_for_the_file_system_lack_their_middle(small_checkpoint, images, tmp_path):
    fitting = ["x" * 213 + "a", "写" * 72 + "b"]  # with the task's name and "_objects.json" up to 255 bytes
    too_long = ["y" * 230 + "a", "y" * 230 + "b", "a" + "字" * 80]
    in_folders = [f"{folder * 17}/{'写' * 66}" for folder in "甲乙"]
    alike = [f"{'z' * 120}{middle}{'z' * 120}" for middle in "abc"]
    sources = [tmp_path / "in" / f"{name}.png" for name in (*fitting, *too_long, *in_folders, *alike)]
    for source in sources:
        write(source, next(images))
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")

    workflow.run_on(folder=str(tmp_path / "in"))

    bases = base_names(tmp_path / "out", sources)
    assert bases[:2] == fitting
    assert bases[2:4] == ["y" * 108 + "..." + "y" * 106 + last for last in "ab"]
    assert bases[4] == "a" + "字" * 35 + "..." + "字" * 36
    first, second = sorted(bases[5:7], key=len)
    assert first == "写" * 66
    assert second[:17] in ("甲" * 17, "乙" * 17)
    assert second.endswith("写.png")
    cut = [base.replace("z" * 98, "") for base in bases[7:]]
    assert sorted(cut) == ["zzzzz...zzzz (2)", "zzzzz...zzzz (3)", "zzzzzzzzzz...zzzzzzzzz"]


def test_paths_that_are_too_long_for_windows_are_shortened(small_checkpoint, images, tmp_path, monkeypatch):
    saving = importlib.import_module(f"{PLUGIN}.infer_segment_anything_3_saving")
    longest = len(str(tmp_path)) + 120
    monkeypatch.setattr(saving, "_LONGEST_PATH", longest)
    sources = [tmp_path / "in" / f"{name}.png" for name in ("x" * 80 + "a", "x" * 80 + "b", "short")]
    for source in sources:
        write(source, next(images))
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.run_on(folder=str(tmp_path / "in"))
    bases = base_names(tmp_path / "out", sources)
    assert [base[-1] for base in bases[:2]] == ["a", "b"]
    assert bases[2] == "short"
    assert max(len(str(path)) for path in (tmp_path / "out").rglob("*")) == longest


def run_in_threads(run, arguments):
    threads = [threading.Thread(target=run, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run_at_once(workflows, run):
    """Run workflows in threads. They save to the same folder, in the same second."""
    for workflow in workflows:
        workflow.set_auto_save(True)
        workflow.update_start_time()  # the folder of a run is named after it
    run_in_threads(run, workflows)


def test_workflows_that_save_to_one_folder_at_once_lose_nothing(segment, small_checkpoint, images, tmp_path):
    sources = [tmp_path / "in" / f"{name}.png" for name in "abcd"]
    for source in sources:
        write(source, next(images))
    found = [segment(TWO_MASKS_AND_OBJECTS, path=str(source)) for source in sources]

    def run(workflow):
        for source in sources:
            workflow.set_image_input(path=str(source), index=0)
            dataprocess.CWorkflow.run(workflow)

    run_at_once([new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")[0] for _ in range(3)], run)
    files = written(tmp_path / "out")
    bases = [name.removesuffix(".png") for name in files if name.endswith(".png")]
    assert set(files) == {base + end for base in bases for end in FILES}
    saved = [[loaded(files[base + end]) for end in FILES[1:]] for base in bases]
    assert [saved.count(results) for results in found] == [3] * len(sources)
    assert len(bases) == 3 * len(sources)


def test_a_name_is_chosen_and_taken_in_one_step(plugins_directory, tmp_path):
    saving = importlib.import_module(f"{PLUGIN}.infer_segment_anything_3_saving")

    class Output(saving.AutoSaved):
        def __init__(self, content):
            self.content = content

        def file_content(self):
            return self.content

    ends, threads, sources = (".png", ".json"), 4, 100
    together = threading.Barrier(threads)

    def run(number):
        for source in range(sources):
            outputs = {end: Output(f"{number} {source}{end}".encode()) for end in ends}
            files = saving.NewFiles(f"{tmp_path}/", f"{source}.jpg", outputs)
            together.wait()
            files.write()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_in_threads(run, range(threads))
    finally:
        sys.setswitchinterval(interval)
    pairs = [path.read_text() + path.with_suffix(".json").read_text() for path in tmp_path.glob("*.png")]
    expected = {
        f"{number} {source}.png{number} {source}.json" for number in range(threads) for source in range(sources)
    }
    assert len(pairs) == len(expected)
    assert set(pairs) == expected


def test_workflows_that_save_videos_to_one_folder_at_once_lose_nothing(segment, small_checkpoint, images, tmp_path):
    write_video(tmp_path / "clip.avi", [next(images) for _ in range(3)])
    frames = [segment(TWO_MASKS_AND_OBJECTS, array=frame) for frame in frames_of(tmp_path / "clip.avi")]
    workflows = [new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")[0] for _ in range(3)]
    for workflow in workflows:
        workflow.set_video_input(path=str(tmp_path / "clip.avi"), index=0)
        workflow.set_cfg_entry("WholeVideo", "1")
    run_at_once(workflows, dataprocess.CWorkflow.run)
    folders = {path.parent for path in (tmp_path / "out").rglob("*SegIO_*")}
    assert len(folders) == len(workflows)
    for folder in folders:
        assert [frames_in(folder / name) for name in VIDEO_FILES] == [
            list(output) for output in zip(*frames, strict=True)
        ]


# --- what a user saves


def test_an_output_goes_to_the_path_of_the_user_even_if_ikomia_did_not_save_it(
    small_checkpoint, images, tmp_path, monkeypatch
):
    workflow, algorithm = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    for auto_save in (False, True):
        workflow.set_auto_save(auto_save)
        workflow.run_on(array=next(images))
        with monkeypatch.context() as patched:
            if not auto_save:
                patched.setattr(algorithm, "emit_step_progress", algorithm.stop, raising=False)
            algorithm.run()  # without the workflow, nothing is saved
        if auto_save:
            workflow.set_auto_save(False)
            workflow.run_on(array=next(images))
        path = Path(f"{algorithm.output_folder} of the user, {auto_save}.json")  # it begins as Ikomia's
        path.parent.mkdir(parents=True, exist_ok=True)
        algorithm.get_output(1).save(str(path))
        assert path.is_file()


@pytest.mark.parametrize("auto_save", [False, True])
def test_an_output_is_saved_to_the_path_that_the_user_chooses(small_checkpoint, images, tmp_path, auto_save):
    workflow, algorithm = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(auto_save)
    for image in (next(images), next(images)):  # the second overwrites the files of the first
        workflow.run_on(array=image)
        files = [tmp_path / name for name in ("first.json", "all_objects.json", "second.json")]
        for output, path in zip(algorithm.get_outputs()[1:], files, strict=True):
            output.save(str(path))
        assert [loaded(path) for path in files] == contents(algorithm.get_outputs()[1:])


JSON_OPTIONS = [
    (),
    ([],),
    (["json_format", "compact"],),
    (["json_format", "indented"],),
    (["image_format", "jpg"],),
    (["image_format", "jpg", "json_format", "indented"],),
    (["image_format", "png"],),
    (["image_format"],),
]


@pytest.mark.parametrize("options", JSON_OPTIONS)
def test_json_keeps_every_pixel_value_whatever_the_options(small_checkpoint, images, options):
    workflow, algorithm = new_workflow(
        small_checkpoint, {"input_text": "shoe", "confidence_threshold": 0, "instance_output": True}
    )
    workflow.run_on(array=next(images))
    for output in algorithm.get_outputs()[1:]:
        text = output.to_json(*options)
        copy = type(output)()
        copy.from_json(text)
        assert contents([copy]) == contents([output])
        assert ("\n" in text) == ("indented" in str(options))


def test_outputs_of_a_loaded_workflow_and_of_the_workflow_itself_store_masks_as_png(small_checkpoint, images, tmp_path):
    workflow, _ = new_workflow(small_checkpoint, {"input_text": "shoe", "confidence_threshold": 0})
    workflow.save(str(tmp_path / "workflow.json"), exposed_outputs={PLUGIN: [{"index": 1}]})
    again = Workflow()
    again.load(str(tmp_path / "workflow.json"))
    again.add_output("", again.get_task_id(again.find_task(PLUGIN, 0)), 1)
    again.run_on(array=next(images))
    output = again.get_outputs()[-1]
    copy = dataprocess.CSemanticSegmentationIO()
    copy.from_json(output.to_json(["json_format", "compact"]))
    assert contents([copy]) == contents([again.find_task(PLUGIN, 0).get_output(1)])
    assert copy.get_mask().any()


# --- videos


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    return [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]


def frames_in(path):
    """Return what is in each frame of a JSON file of a video."""
    kind = dataprocess.CInstanceSegmentationIO if "Instance" in path.name else dataprocess.CSemanticSegmentationIO
    frames = []
    for frame in json.loads(path.read_text()):
        output = kind()
        output.from_json(json.dumps(frame))
        frames += contents([output])
    return frames


VIDEO_FILES = ("SemanticSegIO_1.json", "InstanceSegIO_2.json", "SemanticSegIO_3.json")


def test_videos_of_a_folder_have_one_file_for_each_output_with_all_frames(segment, small_checkpoint, images, tmp_path):
    sizes = {"clip.avi": 3, "other.avi": 2, "sub/clip.avi": 1}
    for name, count in sizes.items():
        write_video(tmp_path / "in" / name, [next(images) for _ in range(count)])
    write(tmp_path / "in" / "picture.png", next(images))
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")

    workflow.run_on(folder=str(tmp_path / "in"))

    of_picture = {f"picture{end}" for end in (".png", ".json", "_2.json", "_objects.json")}
    assert of_picture <= set(written(tmp_path / "out"))
    folders = {path.parent for path in (tmp_path / "out").rglob("*SegIO_*")}
    assert len(folders) == len(sizes)
    found = [[frames_in(folder / name) for name in VIDEO_FILES] for folder in folders]
    for name in sizes:
        frames = [segment(TWO_MASKS_AND_OBJECTS, array=frame) for frame in frames_of(tmp_path / "in" / name)]
        assert [list(output) for output in zip(*frames, strict=True)] in found
    others = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "SegIO" not in path.name]
    assert len(others) == len(of_picture) + len(sizes)  # and a copy of each video
    assert sum(path.suffix == ".mp4" for path in others) == len(sizes)


@pytest.fixture
def two_tasks(small_checkpoint, tmp_path):
    """Return a workflow with the plugin twice, one after the other."""
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES[0]}, tmp_path / "out")
    second = workflow.add_task(name=PLUGIN, auto_connect=True)
    second.set_parameters({"model_weight_file": small_checkpoint, "cuda": False, "input_box": BOXES[1]})
    return workflow


def test_of_two_tasks_in_a_workflow_the_second_has_the_longer_names(segment, two_tasks, images, tmp_path):
    write(tmp_path / "in" / "a.png", next(images))
    two_tasks.run_on(folder=str(tmp_path / "in"))
    files = written(tmp_path / "out")
    assert set(files) == {"a.png", "a.json", "in_a.png.png", "in_a.png.json"}
    for base, box in (("a", BOXES[0]), ("in_a.png", BOXES[1])):
        assert [loaded(files[f"{base}.json"])] == segment({"input_box": box}, path=str(tmp_path / "in" / "a.png"))


def test_a_video_that_another_task_hands_on_is_refused_if_ikomia_saves_the_results(two_tasks, images, tmp_path, caplog):
    write_video(tmp_path / "in" / "clip.avi", [next(images)] * 2)
    two_tasks.run_on(folder=str(tmp_path / "in"))
    (error,) = folder_errors(caplog)
    assert "Ikomia cannot save the results of a video that another task hands on" in error


def test_a_video_that_another_task_hands_on_is_segmented_if_nothing_is_saved(segment, two_tasks, images, tmp_path):
    path = tmp_path / "clip.avi"
    write_video(path, [next(images), next(images)])
    two_tasks.run_on(path=str(path))
    last = two_tasks.find_task(PLUGIN, 1)
    assert contents(last.get_outputs()[1:]) == segment({"input_box": BOXES[1]}, array=frames_of(path)[-1])


@pytest.mark.parametrize("stopped", [False, True])
def test_a_video_that_is_segmented_again_overwrites_nothing(small_checkpoint, images, tmp_path, monkeypatch, stopped):
    write_video(tmp_path / "clip.avi", [next(images), next(images)])
    workflow, algorithm = new_workflow(small_checkpoint, {"input_box": BOXES[0]}, tmp_path / "out")
    workflow.set_auto_save(True)
    workflow.run_on(path=str(tmp_path / "clip.avi"))
    (before,) = (tmp_path / "out").rglob("SemanticSegIO_1.json")
    content = before.read_bytes()
    workflow.set_parameters({"input_box": BOXES[1]}, task_obj=algorithm)
    if stopped:
        monkeypatch.setattr(algorithm, "emit_step_progress", algorithm.stop, raising=False)
    dataprocess.CWorkflow.run(workflow)  # into the same folder
    assert before.read_bytes() == content
    (after,) = set((tmp_path / "out").rglob("SemanticSegIO_1.json")) - {before}
    assert len(json.loads(after.read_text())) == 2
    assert after.read_bytes() != content


def test_images_before_and_after_a_video_are_saved_as_images(segment, small_checkpoint, images, tmp_path):
    write_video(tmp_path / "clip.avi", [next(images)] * 2)
    workflow, _ = new_workflow(small_checkpoint, TWO_MASKS_AND_OBJECTS, tmp_path / "out")
    workflow.set_auto_save(True)
    for number in range(2):
        workflow.run_on(path=str(tmp_path / "clip.avi"))
        path = tmp_path / f"after {number}.png"
        write(path, next(images))
        workflow.run_on(path=str(path))
        files = written(tmp_path / "out")
        saved = [loaded(files[f"after {number}{end}"]) for end in (".json", "_objects.json", "_2.json")]
        assert saved == segment(TWO_MASKS_AND_OBJECTS, path=str(path))
        assert np.array_equal(cv2.imread(str(files[path.name])), cv2.imread(str(path)))
    workflow.run_on(path=str(tmp_path / "clip.avi"))
    before = sorted((tmp_path / "out").rglob("*"))
    workflow.set_auto_save(False)
    workflow.run_on(array=next(images))
    assert sorted((tmp_path / "out").rglob("*")) == before


# --- runs that do not get the images of their folder

ADVICE = "For each folder, use a new Workflow, or call clear_inputs() on this one before run_on(folder=...)."


@pytest.fixture
def two_folders(images, tmp_path):
    for name in ("one/a.png", "one/b.png", "two/c.png", "two/d.png", "two/e.png"):
        write(tmp_path / name, next(images))
    return str(tmp_path / "one"), str(tmp_path / "two")


def folder_errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_second_folder_in_the_same_workflow_is_refused(small_checkpoint, two_folders, tmp_path, caplog):
    one, two = two_folders
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES}, tmp_path / "out")
    workflow.run_on(folder=one)
    assert folder_errors(caplog) == []
    before = set(written(tmp_path / "out"))
    workflow.run_on(folder=two)
    errors = {error.split()[4]: error for error in folder_errors(caplog)}
    assert sorted(errors) == ["a.png:", "b.png:", "c.png:", "d.png:", "e.png:"]
    for name in "ab":  # Ikomia segments the old folder again
        assert (
            f"No task is connected to input 1 of the workflow, the folder '{two}': this run uses "
            f"the image '{one}/{name}.png' instead. {ADVICE}"
        ) in errors[f"{name}.png:"]
    for name in "cde":
        assert f"The input is the folder '{one}' instead of an image. {ADVICE}" in errors[f"{name}.png:"]
    assert set(written(tmp_path / "out")) == before


def test_a_folder_after_a_single_run_is_refused(small_checkpoint, two_folders, images, tmp_path, caplog):
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES}, tmp_path / "out")
    write(tmp_path / "single.png", next(images))
    workflow.run_on(path=str(tmp_path / "single.png"))
    workflow.run_on(folder=two_folders[1])
    errors = sorted(folder_errors(caplog))
    assert len(errors) == 3
    for name, error in zip("cde", errors, strict=True):
        assert (
            f"No task is connected to input 1 of the workflow, the image '{two_folders[1]}/{name}.png': this run uses "
            f"the image '{tmp_path / 'single.png'}' instead. {ADVICE}"
        ) in error
    assert written(tmp_path / "out") == {}


@pytest.mark.parametrize("first", ["folder", "path"])
def test_a_workflow_whose_inputs_are_cleared_takes_another_folder(
    segment, small_checkpoint, two_folders, tmp_path, caplog, first
):
    workflow, _ = new_workflow(small_checkpoint, {"input_box": BOXES}, tmp_path / "out")
    workflow.run_on(**{first: two_folders[0] + ("/a.png" if first == "path" else "")})
    workflow.clear_inputs()
    workflow.run_on(folder=two_folders[1])
    assert folder_errors(caplog) == []
    files = written(tmp_path / "out")
    for name in "cde":
        alone = segment({"input_box": BOXES}, path=f"{two_folders[1]}/{name}.png")
        assert [loaded(files[f"{name}.json"]), loaded(files[f"{name}_2.json"])] == alone


def test_the_same_image_may_be_segmented_again(small_checkpoint, images, tmp_path, caplog):
    workflow, algorithm = new_workflow(small_checkpoint, {"input_box": BOXES}, tmp_path / "out")
    workflow.set_auto_save(True)
    image = next(images)
    workflow.run_on(array=image)
    for boxes in (BOXES[:1], BOXES[1:]):
        workflow.set_parameters({"input_box": boxes}, task_obj=algorithm)
        workflow.run()
        dataprocess.CWorkflow.run(workflow)  # into the same folder
        workflow.run_on(array=image)
    assert folder_errors(caplog) == []
    assert len(list((tmp_path / "out").rglob("*.png"))) == 7


def test_another_drawing_on_the_same_image_is_segmented(small_checkpoint, images, tmp_path):
    workflow, algorithm = new_workflow(small_checkpoint, {}, tmp_path / "out")
    workflow.set_auto_save(True)
    found = []
    for left in (10, 30):
        drawn = dataprocess.CGraphicsInput()
        drawn.set_items([core.CGraphicsRectangle(left, 20, 100, 100)])
        algorithm.set_input(drawn, 1)
        if found:
            dataprocess.CWorkflow.run(workflow)
        else:
            workflow.run_on(array=next(images))
        found.append(algorithm.get_output(1).get_mask().copy())
    assert all(mask.any() for mask in found)
    assert not np.array_equal(*found)


def test_images_that_another_task_hands_on_in_the_same_object_are_segmented(
    segment, small_checkpoint, two_folders, tmp_path, caplog
):
    workflow, _ = new_workflow(small_checkpoint, {"input_text": "shoe"}, tmp_path / "out")
    second = workflow.add_task(name=PLUGIN, auto_connect=True)
    second.set_parameters({"model_weight_file": small_checkpoint, "cuda": False, "input_box": BOXES})
    workflow.run_on(folder=two_folders[1])
    assert folder_errors(caplog) == []
    alone = [segment({"input_box": BOXES}, path=f"{two_folders[1]}/{name}.png")[1] for name in "cde"]
    saved = [loaded(path) for name, path in sorted(written(tmp_path / "out").items()) if name.endswith("_2.json")]
    assert saved == alone


def test_a_task_whose_input_is_a_folder_says_so(small_checkpoint, two_folders):
    workflow, algorithm = new_workflow(small_checkpoint, {"input_box": BOXES})
    algorithm.set_input(dataprocess.CPathIO(dataprocess.IODataType.FOLDER_PATH, str(Path(two_folders[0]))), 0)
    with pytest.raises(ValueError, match="The input is the folder"):
        algorithm.run()
