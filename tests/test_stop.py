"""A running task can be stopped from another thread: it ends early, its outputs are empty, the next run is right."""

import importlib
import json
import threading

import PIL.Image
import pytest
import torch
from ikomia.dataprocess.workflow import Workflow

from sam3_engine.model import load_model
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from testbed.plugin import PLUGIN

TIMEOUT = 60
PHRASES = [f"phrase {number}" for number in range(20)]
BOXES = [[10 * k, 5, 10 * k + 200, 300] for k in range(40)]  # three passes
LONG_RUNS = {
    "phrases": ({"input_text": PHRASES, "confidence_threshold": 0.45, "instance_output": True}, "forward_grounding"),
    "boxes": ({"input_box": BOXES, "instance_output": True}, "predict_inst"),
    "everything": (
        {"points_per_side": 8, "predicted_iou_threshold": 0, "stability_score_threshold": 0, "instance_output": True},
        "predict_inst",
    ),
}


class Stopper:
    """A thread that asks a task or workflow to stop as soon as one of its functions runs for the n-th time.

    The function waits until it was asked, so a test knows how much was still to do.

    Attributes:
        calls: how often the function ran.
    """

    def __init__(self, monkeypatch, stop, owner, function, call):
        self.calls = 0
        original = getattr(owner, function)
        reached, asked = threading.Event(), threading.Event()

        def counted(*arguments, **options):
            self.calls += 1
            if self.calls == call:
                reached.set()
                assert asked.wait(TIMEOUT)
            return original(*arguments, **options)

        def ask():
            assert reached.wait(TIMEOUT)
            stop()
            asked.set()

        monkeypatch.setattr(owner, function, counted)
        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def join(self):
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


@pytest.fixture
def network(algorithm):
    algorithm.init_long_process()
    return algorithm._predictor.model.network


def run(workflow, algorithm, image, parameters):
    """Run the plugin and return all it outputs after the image."""
    workflow.set_parameters({"input_text": "", "input_box": "", "points_per_side": 0, **parameters}, task_obj=algorithm)
    workflow.run_on(array=image)
    return contents(algorithm)


def contents(algorithm):
    first, objects, *further = algorithm.get_outputs()[1:]
    return (
        [(mask.description, mask.get_class_names(), mask.get_mask().tobytes()) for mask in (first, *further)],
        [(one.label, one.confidence, one.box, one.mask.tobytes()) for one in objects.get_objects()],
    )


def assert_empty(algorithm):
    """Check that no output after the image has data, as before the first run."""
    for output in algorithm.get_outputs()[1:]:
        assert not output.is_data_available()
        assert output.description == ""
        assert "polygons" not in json.loads(output.to_json())


def forget_answers(algorithm):
    algorithm._predictor.model.embeddings.clear()


@pytest.mark.parametrize("kind", LONG_RUNS)
@pytest.mark.parametrize("call", [1, 2])
def test_a_stopped_task_ends_after_the_phrase_or_pass_that_runs(
    workflow, algorithm, network, photograph, monkeypatch, caplog, kind, call
):
    parameters, function = LONG_RUNS[kind]
    undisturbed = run(workflow, algorithm, photograph, parameters)
    forget_answers(algorithm)
    with monkeypatch.context() as patched:
        stopper = Stopper(patched, algorithm.stop, network, function, call)
        workflow.run_on(array=photograph)  # without an error
        stopper.join()
        assert stopper.calls == call
    assert_empty(algorithm)
    assert "Stopped before the end: the outputs are empty." in caplog.messages
    assert run(workflow, algorithm, photograph, parameters) == undisturbed
    assert undisturbed[1]


def test_a_stop_while_the_image_is_encoded_answers_no_phrase(workflow, algorithm, network, photograph, monkeypatch):
    workflow.set_parameters({"input_text": "shoe"}, task_obj=algorithm)
    encoding = Stopper(monkeypatch, algorithm.stop, network.backbone, "forward_image", 1)
    detection = Stopper(monkeypatch, lambda: None, network, "forward_grounding", 1)
    workflow.run_on(array=photograph)
    encoding.join()
    assert (encoding.calls, detection.calls) == (1, 0)
    assert_empty(algorithm)
    workflow.run_on(array=photograph)  # the embedding is there
    detection.join()
    assert (encoding.calls, detection.calls) == (1, 1)
    assert algorithm.get_output(1).is_data_available()


def test_a_stop_while_the_model_is_loaded_encodes_no_image(workflow, algorithm, photograph, monkeypatch):
    models = importlib.import_module(f"{PLUGIN}.sam3_engine.shared_models")
    workflow.set_parameters({"input_text": "shoe"}, task_obj=algorithm)
    loading = Stopper(monkeypatch, algorithm.stop, models, "load_model", 1)
    workflow.run_on(array=photograph)
    loading.join()
    assert_empty(algorithm)
    encoding = Stopper(monkeypatch, lambda: None, algorithm._predictor.model.network.backbone, "forward_image", 1)
    workflow.run_on(array=photograph)
    encoding.join()
    assert (loading.calls, encoding.calls) == (1, 1)
    assert algorithm.get_output(1).is_data_available()


def test_a_stop_during_the_last_phrase_gives_no_outputs_either(workflow, algorithm, network, photograph, monkeypatch):
    workflow.set_parameters({"input_text": "shoe"}, task_obj=algorithm)
    stopper = Stopper(monkeypatch, algorithm.stop, network, "forward_grounding", 1)
    workflow.run_on(array=photograph)
    stopper.join()
    assert_empty(algorithm)


def test_a_stopped_workflow_stops_the_plugin(workflow, algorithm, network, photograph, monkeypatch):
    parameters, function = LONG_RUNS["phrases"]
    undisturbed = run(workflow, algorithm, photograph, parameters)
    forget_answers(algorithm)
    with monkeypatch.context() as patched:
        stopper = Stopper(patched, workflow.stop, network, function, 3)
        with pytest.raises(RuntimeError, match="^Stop workflow requested"):  # Ikomia's own way to end
            workflow.run_on(array=photograph)
        stopper.join()
        assert stopper.calls == 3
    assert_empty(algorithm)
    assert run(workflow, algorithm, photograph, parameters) == undisturbed


def test_no_mask_of_a_stopped_image_is_saved(workflow, algorithm, network, photograph, monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    for number, image in enumerate([photograph, photograph[::-1], photograph[:, ::-1]]):
        PIL.Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    workflow.set_output_folder(str(tmp_path / "out"))
    workflow.set_parameters({"input_text": PHRASES[:3], "instance_output": True}, task_obj=algorithm)
    stopper = Stopper(monkeypatch, algorithm.stop, network, "forward_grounding", 5)  # in the second image
    workflow.run_on(folder=str(tmp_path / "in"))
    stopper.join()
    saved = [path.name for path in (tmp_path / "out").rglob("*.json") if "objects" not in path.name]
    assert len(saved) == 2
    assert len(list((tmp_path / "out").rglob("*objects.json"))) == 2
    assert algorithm.get_output(1).is_data_available()


def test_a_stop_after_a_run_does_not_affect_the_next(workflow, algorithm, photograph):
    parameters = {"input_box": BOXES[:1], "instance_output": True}
    before = run(workflow, algorithm, photograph, parameters)
    algorithm.stop()
    assert contents(algorithm) == before
    assert run(workflow, algorithm, photograph, parameters) == before


def test_a_stop_ends_only_its_own_task(workflow, algorithm, network, photograph, monkeypatch):
    """Both tasks use the same model, so the second one waits for it meanwhile."""
    other_workflow = Workflow()
    other = other_workflow.add_task(name=PLUGIN, auto_connect=True)
    parameters = {**algorithm.get_parameters(), "input_text": '["phrase 1", "hat"]', "instance_output": "True"}
    undisturbed = run(other_workflow, other, photograph, parameters)
    forget_answers(algorithm)
    workflow.set_parameters({"input_text": PHRASES}, task_obj=algorithm)
    thread = threading.Thread(target=lambda: other_workflow.run_on(array=photograph))

    def stop():
        thread.start()
        algorithm.stop()

    stopper = Stopper(monkeypatch, stop, network, "forward_grounding", 2)
    workflow.run_on(array=photograph)
    stopper.join()
    thread.join(TIMEOUT)
    assert_empty(algorithm)
    assert contents(other) == undisturbed


# --- the engine


@pytest.fixture(scope="module")
def predictor(small_checkpoint):
    return Predictor(load_model(small_checkpoint, torch.device("cpu")))


@pytest.mark.parametrize(
    ("prompt", "units"),
    [
        (ConceptPrompt(("shoe",)), 1),
        (ConceptPrompt(tuple(PHRASES)), 20),
        (ConceptPrompt((), ((60.0, 80.0, 300.0, 330.0),), (1,)), 1),
        (GeometricPrompt((), ((210.0, 150.0),), (1,)), 1),
        (GeometricPrompt(tuple(map(tuple, BOXES[:16]))), 1),
        (GeometricPrompt(tuple(map(tuple, BOXES))), 3),
    ],
)
def test_the_callback_is_called_before_each_unit_of_work(predictor, photograph, prompt, units):
    steps = []
    embedding = predictor.encode_image(photograph)
    for _ in range(2):  # cached answers too
        steps.clear()
        predictor.segment(embedding, prompt, on_step=lambda: steps.append("step"))
        assert len(steps) == units
    steps.clear()
    predictor.predict(
        photograph, prompt, on_step=lambda: steps.append("step"), on_encoded=lambda: steps.append("encoded")
    )
    assert steps == ["step", "encoded", *["step"] * units]


@pytest.mark.parametrize("error", [KeyError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("prompt", [ConceptPrompt(tuple(PHRASES[:5])), GeometricPrompt(tuple(map(tuple, BOXES)))])
def test_an_exception_in_the_callback_leaves_the_predictor_usable(
    small_checkpoint, predictor, photograph, prompt, error
):
    wanted = [one.mask_logits for one in predictor.predict(photograph, prompt)]
    fresh = Predictor(load_model(small_checkpoint, torch.device("cpu")))
    for units in range(1 + 3):
        left = [None] * units

        def stop(left=left):
            if not left:
                raise error("enough")
            left.pop()

        with pytest.raises(error, match="enough"):
            fresh.predict(photograph, prompt, on_step=stop)
    found = []
    thread = threading.Thread(target=lambda: found.extend(fresh.predict(photograph, prompt)))  # the lock is free
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert len(found) == len(wanted)
    assert all(torch.equal(a.mask_logits, b) for a, b in zip(found, wanted, strict=True))


def test_answers_before_a_stop_are_kept(predictor, photograph, monkeypatch):
    predictor.model.embeddings.clear()
    embedding = predictor.encode_image(photograph)
    calls = Stopper(monkeypatch, lambda: None, predictor.model.network, "forward_grounding", 1)
    steps = iter([None, None, None])
    with pytest.raises(StopIteration):
        predictor.segment(embedding, ConceptPrompt(tuple(PHRASES[:10])), on_step=lambda: next(steps))
    assert calls.calls == 3
    predictor.segment(embedding, ConceptPrompt(tuple(PHRASES[:10])))
    assert calls.calls == 10
    calls.join()
