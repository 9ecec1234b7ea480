"""Nothing is computed twice: images, phrases, answers and models are cached by content, and the caches are bounded."""

import dataclasses
import gc
import importlib
import sys
import threading
import weakref

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from ikomia.dataprocess.workflow import Workflow

from sam3_engine.lru_cache import LRUCache, MemoryBudget
from sam3_engine.memory import budget_of
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor, open_predictor
from sam3_engine.prompts import ConceptPrompt, GeometricPrompt
from sam3_engine.shared_models import shared_model
from testbed.direct_use import DirectUse
from testbed.layout_files import LAYOUTS, read_contents
from testbed.plugin import PLUGIN

CPU = torch.device("cpu")
BOX = GeometricPrompt(boxes=((60.0, 80.0, 300.0, 330.0),))
NO_PROMPT = {"input_text": "", "input_box": "", "input_point": "", "input_point_label": "", "multimask_output": False}


class Calls:
    """Counts how often parts of a network run."""

    def __init__(self, monkeypatch, network):
        self.images = self.texts = self.detections = 0
        self._count(monkeypatch, network.backbone, "forward_image", "images")
        self._count(monkeypatch, network.backbone, "forward_text", "texts")
        self._count(monkeypatch, network, "forward_grounding", "detections")

    def _count(self, monkeypatch, part, method, counter):
        original = getattr(part, method)

        def counted(*arguments, **options):
            setattr(self, counter, getattr(self, counter) + 1)
            return original(*arguments, **options)

        monkeypatch.setattr(part, method, counted)


@pytest.fixture
def predictor(small_checkpoint):
    return Predictor(load_model(small_checkpoint, CPU))


@pytest.fixture
def calls(monkeypatch, predictor):
    return Calls(monkeypatch, predictor.model.network)


# --- the cache


def test_the_most_recently_used_values_are_kept():
    made = []

    def ask(recent, key):
        return recent.get(key, lambda: made.append(key) or key.upper())

    recent = LRUCache(2)
    assert [ask(recent, key) for key in "abaabc"] == list("ABAABC")
    assert made == list("abc")
    ask(recent, "b")
    assert made == list("abc")
    ask(recent, "a")  # was evicted for "c"
    ask(recent, "b")
    assert made == list("abca")
    ask(recent, "c")
    assert made == list("abcac")


def test_a_value_is_evicted_before_the_new_one_is_computed():
    class Thing:
        pass

    alive = weakref.WeakSet()

    def make():
        assert len(alive) <= 1
        thing = Thing()
        alive.add(thing)
        return thing

    recent = LRUCache(2)
    for key in range(5):
        recent.get(key, make)
    assert len(alive) == 2


def test_a_failed_computation_is_retried():
    recent = LRUCache(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 / 0)
    assert recent.get("a", lambda: 5) == 5


# --- the budget


def kilobytes(count):
    return torch.zeros(count, 1000, dtype=torch.uint8)


def test_caches_with_one_budget_evict_the_least_recently_used_value_of_all():
    budget = MemoryBudget(10_000)
    first, second = LRUCache(9, budget), LRUCache(9, budget)
    first.get("a", lambda: kilobytes(4))
    second.get("b", lambda: {"in a": [kilobytes(2)], "tuple": (kilobytes(2), "text", None)})
    assert budget.used == 8000
    first.get("a", pytest.fail)
    first.get("c", lambda: kilobytes(4))
    assert ["a" in first, "b" in second, "c" in first] == [True, False, True]
    second.get("d", lambda: kilobytes(6))
    assert ["a" in first, "c" in first, "d" in second] == [False, True, True]
    assert budget.used == 10_000


def test_a_value_larger_than_the_budget_is_returned_but_not_kept():
    budget = MemoryBudget(10_000)
    cache = LRUCache(9, budget)
    cache.get("a", lambda: kilobytes(10))
    assert cache.get("b", lambda: kilobytes(11)).nbytes == 11_000
    assert ["a" in cache, "b" in cache] == [True, False]


def test_memory_that_values_share_counts_once():
    budget = MemoryBudget(10_000)
    cache = LRUCache(9, budget)
    shared = kilobytes(4)
    for number in range(4):
        cache.get(number, lambda: [shared, shared[2:], kilobytes(1)])
    assert budget.used == 8000
    assert cache.get("a view keeps all of its memory", lambda: kilobytes(2)[:1]).nbytes == 1000
    assert budget.used == 10_000
    cache.get("one more", lambda: shared[0])
    assert budget.used == 10_000


def test_what_a_value_caches_goes_before_the_value():
    """An image whose answers are in use is in use as well; an image that is not goes, after its answers."""

    @dataclasses.dataclass
    class Image:
        features: torch.Tensor
        answers: LRUCache

    budget = MemoryBudget(10_000)
    images = LRUCache(9, budget)

    def image():
        return Image(kilobytes(2), LRUCache(9, budget))

    old, new = images.get("old", image), images.get("new", image)
    for phrase in ("a", "b", "c"):
        old.answers.get(phrase, lambda: kilobytes(2))
    new.answers.get("a", lambda: kilobytes(2))
    assert [phrase in old.answers for phrase in "abc"] == [False, True, True]
    new.answers.get("b", lambda: kilobytes(6))
    assert ["old" in images, "new" in images, *(phrase in new.answers for phrase in "ab")] == [False, True, True, True]
    assert budget.used == 10_000


def test_a_cache_that_is_gone_uses_none_of_the_budget():
    budget = MemoryBudget(10_000)
    cache, other = LRUCache(9, budget), LRUCache(9, budget)
    cache.get("a", lambda: kilobytes(5))
    other.get("b", lambda: kilobytes(5))
    gc.disable()
    try:
        del cache
        assert budget.used == 5000
    finally:
        gc.enable()
    other.get("c", lambda: kilobytes(5))
    assert "b" in other


def test_lowering_the_limit_evicts():
    budget = MemoryBudget(10_000)
    cache = LRUCache(9, budget)
    for number in range(5):
        cache.get(number, lambda: kilobytes(2))
    budget.limit = 5000
    assert [number in cache for number in range(5)] == [False, False, False, True, True]
    budget.limit = 0
    assert budget.used == 0


def test_threads_may_share_caches_and_their_budget():
    budget = MemoryBudget(20_000)
    shared, most, errors = LRUCache(30, budget), [], []

    def use(seed):
        random = np.random.default_rng(seed)
        try:
            for step in range(200):
                key = int(random.integers(30))
                assert len(shared.get(key, lambda key=key: kilobytes(key))) == key
                own = LRUCache(3, budget)
                assert len(own.get(step, lambda: kilobytes(3))) == 3
                most.append(budget.used)
                if step % 50 == 49:
                    budget.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert 10_000 < max(most) <= 20_000


@pytest.fixture
def cpu_budget():
    """Return the budget of the CPU; its limit is restored after the test."""
    budget = budget_of(CPU)
    limit = budget.limit
    budget.clear()
    yield budget
    budget.limit = limit


def test_all_models_on_a_device_share_a_budget_that_changes_no_answer(
    small_checkpoint, predictor, calls, photograph, cpu_budget
):
    assert cpu_budget.limit == 2_000_000_000
    other = Predictor(load_model(small_checkpoint, CPU))
    prompt, options = ConceptPrompt(("shoe", "hat", "coat")), Options(confidence_threshold=0)
    wanted = answer(predictor.predict(photograph, prompt, options))
    one_image = cpu_budget.used
    other.predict(photograph, prompt, options)
    assert cpu_budget.used == 2 * one_image
    cpu_budget.limit = one_image  # the other model was used last
    assert cpu_budget.used <= one_image
    assert answer(predictor.predict(photograph, prompt, options)) == wanted
    assert calls.images == 2
    for limit in (one_image, one_image * 3 // 4, one_image // 2, 1000, 0):
        cpu_budget.limit = limit
        for _ in range(2):
            assert answer(predictor.predict(photograph, prompt, options)) == wanted
            assert cpu_budget.used <= limit


def test_answers_are_evicted_before_the_image_that_they_are_about(predictor, calls, photograph, cpu_budget):
    phrases = [ConceptPrompt((f"phrase {number}",)) for number in range(8)]
    predictor.predict(photograph, phrases[0])
    one_answer = predictor.encode_image(photograph).detections
    before = cpu_budget.used
    predictor.predict(photograph, phrases[1])
    each = cpu_budget.used - before
    cpu_budget.limit = before + 2 * each
    for phrase in phrases * 2:
        predictor.predict(photograph, phrase)
    assert calls.images == 1
    assert predictor.encode_image(photograph).detections is one_answer


def test_the_budget_of_a_gpu_is_a_quarter_of_what_is_free_once_a_model_is_loaded(
    emulated_cuda, small_checkpoint, photograph
):
    gpu = torch.device("cuda", 1)
    predictor = Predictor(load_model(small_checkpoint, gpu))
    budget, weights = predictor.model.budget, emulated_cuda.allocated(1)
    free_memory = emulated_cuda.gpus[1].memory - weights
    assert budget is budget_of(gpu)
    assert abs(budget.limit / (free_memory / 4) - 1) < 0.001
    predictor.predict(photograph, ConceptPrompt(("shoe",)))
    assert 0 < budget.used <= emulated_cuda.allocated(1) - weights
    before = budget.limit
    second = load_model(small_checkpoint, gpu)
    assert second.budget is budget
    assert abs((before - budget.limit) / (weights / 4) - 1) < 0.1  # what is kept counts as free
    assert budget_of(torch.device("cuda", 0)) is not budget


# --- images


def test_an_image_is_identified_by_its_content(predictor, calls, photograph):
    first = predictor.encode_image(photograph)
    same = [
        photograph.copy(),
        np.asfortranarray(photograph),
        PIL.Image.fromarray(photograph),
        np.dstack([photograph, np.zeros(photograph.shape[:2], np.uint8)]),
        photograph.astype(np.float32),
        np.pad(photograph, ((3, 3), (3, 3), (0, 0)))[3:-3, 3:-3],
    ]
    assert all(predictor.encode_image(image) is first for image in same)
    assert calls.images == 1


def test_any_difference_makes_it_another_image(predictor, calls, photograph):
    one_pixel = photograph.copy()
    one_pixel[200, 300, 1] ^= 1
    height, width = photograph.shape[:2]
    different = [photograph, one_pixel, photograph[:-1], photograph.reshape(width, height, 3), photograph[:, ::-1]]
    embeddings = [predictor.encode_image(image) for image in different]
    embeddings.append(predictor.encode_image(photograph, size_percent=50))
    assert calls.images == len({id(embedding) for embedding in embeddings}) == 6


def test_the_last_two_images_are_kept(predictor, calls, photograph):
    a, b, c = photograph, photograph[:, ::-1], photograph[::-1]
    for image in (a, b, a, b, b, a):
        predictor.encode_image(image)
    assert calls.images == 2
    gone = weakref.ref(predictor.encode_image(b))
    for image in (a, c, a):
        predictor.encode_image(image)
    assert calls.images == 3
    gc.collect()
    assert gone() is None
    predictor.encode_image(b)
    assert calls.images == 4


def test_an_image_is_encoded_once_for_all_users_of_the_model(small_checkpoint, monkeypatch, photograph):
    model = shared_model(small_checkpoint, CPU)
    calls = Calls(monkeypatch, model.network)
    predictors = [Predictor(shared_model(small_checkpoint, CPU)) for _ in range(4)]
    found = []

    def ask(predictor):
        found.append(predictor.segment(predictor.encode_image(photograph.copy()), ConceptPrompt(("shoe",))))

    threads = [threading.Thread(target=ask, args=(predictor,)) for predictor in predictors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(found) == 4
    assert (calls.images, calls.texts, calls.detections) == (1, 1, 1)


def test_a_failed_encoding_is_retried(predictor, monkeypatch, photograph):
    with monkeypatch.context() as patched:
        patched.setattr(predictor.model.network.backbone, "forward_image", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predictor.encode_image(photograph)
    assert predictor.segment(predictor.encode_image(photograph), BOX)


# --- phrases and answers


def answer(segments):
    return [(segment.score, segment.box, segment.mask.tobytes()) for segment in segments]


def test_changing_the_threshold_only_filters(small_checkpoint, predictor, calls, photograph):
    embedding = predictor.encode_image(photograph)
    every = predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=0))
    scores = [segment.score for segment in every]
    for threshold in (1.0, scores[3], scores[0], 0.0, scores[-1], scores[5]):
        found = predictor.segment(embedding, ConceptPrompt(("shoe",)), Options(confidence_threshold=threshold))
        fresh = Predictor(load_model(small_checkpoint, CPU))
        wanted = fresh.segment(
            fresh.encode_image(photograph), ConceptPrompt(("shoe",)), Options(confidence_threshold=threshold)
        )
        assert answer(found) == answer(wanted)
        assert len(found) == sum(score > threshold for score in scores)
    assert (calls.texts, calls.detections) == (1, 1)


def test_a_phrase_is_encoded_once_for_all_images(predictor, calls, photograph):
    for image in (photograph, photograph[::-1], photograph[:, ::-1]):
        predictor.segment(predictor.encode_image(image), ConceptPrompt(("shoe",)))
    assert (calls.texts, calls.detections) == (1, 3)
    predictor.segment(predictor.encode_image(photograph), ConceptPrompt(("hat",)))
    assert calls.texts == 2


def test_answers_belong_to_their_image_and_phrase(small_checkpoint, predictor, photograph):
    asked = [(image, phrase) for image in (photograph, photograph[::-1]) for phrase in ("shoe", "hat", "red shoe")]
    for image, phrase in [*asked, *asked]:
        fresh = Predictor(load_model(small_checkpoint, CPU))
        wanted = fresh.segment(fresh.encode_image(image), ConceptPrompt((phrase,)), Options(confidence_threshold=0))
        found = predictor.segment(
            predictor.encode_image(image), ConceptPrompt((phrase,)), Options(confidence_threshold=0)
        )
        assert answer(found) == answer(wanted)


def test_the_last_16_answers_are_kept(predictor, calls, photograph):
    embedding = predictor.encode_image(photograph)
    kept = [f"phrase {number}" for number in range(16)]
    for phrase in [*kept, *kept]:
        predictor.segment(embedding, ConceptPrompt((phrase,)))
    assert calls.detections == 16
    for phrase in ("one more", "one more", *kept[1:], kept[0]):
        predictor.segment(embedding, ConceptPrompt((phrase,)))
    assert calls.detections == 18
    assert calls.texts == 17


def test_several_phrases_need_one_encoding_and_one_detection_each(predictor, calls, photograph):
    prompt = ConceptPrompt(("shoe", "hat", "shirt"))
    for options in ({}, {}, {"confidence_threshold": 0}, {"iou_threshold": 0.5}, {"iou_threshold": 0}):
        predictor.segment(predictor.encode_image(photograph), prompt, Options(**options))
    assert (calls.images, calls.texts, calls.detections) == (1, 3, 3)
    predictor.segment(predictor.encode_image(photograph), ConceptPrompt(("hat",)))
    predictor.segment(predictor.encode_image(photograph), ConceptPrompt(("coat", "shoe")))
    assert (calls.images, calls.texts, calls.detections) == (1, 4, 4)


def test_only_phrases_that_do_not_fit_in_the_cache_are_detected_again(predictor, calls, photograph):
    embedding = predictor.encode_image(photograph)
    prompt = ConceptPrompt(tuple(f"phrase {number}" for number in range(18)))
    first = answer(predictor.segment(embedding, prompt, Options(confidence_threshold=0)))
    assert calls.detections == 18
    assert answer(predictor.segment(embedding, prompt, Options(confidence_threshold=0))) == first
    assert calls.detections == 18 + 2


def test_each_set_of_examples_is_detected_once(predictor, calls, photograph):
    embedding = predictor.encode_image(photograph)
    one, two = BOX.boxes[0], (5.0, 5.0, 600.0, 400.0)
    asked = [
        ConceptPrompt((), (one,), (1,)),
        ConceptPrompt((), (two,), (1,)),
        ConceptPrompt((), (one, two), (1, 0)),
        ConceptPrompt((), (one, two), (1, 1)),
        ConceptPrompt(("shoe",), (one,), (1,)),
        ConceptPrompt(("shoe",), (one,), (0,)),
        ConceptPrompt(("shoe",)),
    ]
    first = [answer(predictor.segment(embedding, prompt, Options(confidence_threshold=0))) for prompt in asked]
    again = [
        answer(predictor.segment(embedding, prompt, Options(confidence_threshold=0))) for prompt in reversed(asked)
    ]
    assert again[::-1] == first
    assert calls.detections == len(asked)
    assert calls.texts == 2  # "shoe", and the package's own text for prompts without a phrase
    assert len({tuple(score for score, _, _ in one) for one in first}) == len(asked)


def test_an_embedding_of_another_model_is_refused(small_checkpoint, predictor, photograph, tmp_path):
    contents = read_contents(small_checkpoint)
    for name in ("sam3", "fine-tuned", "transformers click head"):
        other = load_model(LAYOUTS[name].save(tmp_path, contents), CPU)
        embedding = Predictor(other).encode_image(photograph)
        for prompt in (ConceptPrompt(("shoe",)), BOX):
            with pytest.raises(ValueError, match="The embedding was made by another model"):
                predictor.segment(embedding, prompt)
    assert Predictor(predictor.model).segment(predictor.encode_image(photograph), BOX)


# --- models, in workflows


@pytest.fixture
def encodings(workflow, algorithm, photograph, monkeypatch):
    """Count the calls of the network that ``algorithm`` has loaded."""
    algorithm.init_long_process()
    return Calls(monkeypatch, algorithm._predictor.model.network)


@pytest.fixture
def loads(monkeypatch, workflow):
    """Record the checkpoints that the plugin loads from now on."""
    model = importlib.import_module(f"{PLUGIN}.sam3_engine.shared_models")
    loaded, load = [], model.load_model
    monkeypatch.setattr(
        model, "load_model", lambda checkpoint, *rest: loaded.append(checkpoint) or load(checkpoint, *rest)
    )
    return loaded


def test_only_another_checkpoint_loads_another_model(
    loads, workflow, algorithm, photograph, small_checkpoint, tmp_path
):
    changes = [
        {"input_text": "shoe"},
        {"confidence_threshold": 0.1},
        {"input_size_percent": 50},
        {"input_text": "", "input_point": [[5, 5]]},
        {"multimask_output": True},
        {"model_input_size": 168},
        {"model_input_size": 0},
        {"cuda": torch.cuda.is_available() is False},  # requested but unavailable: the device stays the same
        {"input_point": "", "input_box": [5, 5, 50, 50]},
    ]
    for change in changes:
        workflow.set_parameters(change, task_obj=algorithm)
        workflow.run_on(array=photograph)
    assert len(loads) == 1
    other = tmp_path / "other.pt"
    other.write_bytes(small_checkpoint.read_bytes())
    workflow.set_parameters({"model_weight_file": other}, task_obj=algorithm)
    workflow.run_on(array=photograph)
    assert loads[1:] == [other]


def test_changing_the_prompt_does_not_encode_the_image_again(encodings, workflow, algorithm, photograph):
    for prompt in (
        {"input_text": "shoe"},
        {"input_point": [[5, 5]]},
        {"input_box": [5, 5, 50, 50]},
        {"input_text": "hat"},
    ):
        workflow.set_parameters({**NO_PROMPT, **prompt}, task_obj=algorithm)
        workflow.run_on(array=photograph.copy())
    assert (encodings.images, encodings.texts) == (1, 2)


def test_the_same_picture_as_array_and_as_file_is_encoded_once(encodings, workflow, algorithm, photograph, tmp_path):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(photograph, cv2.COLOR_RGB2BGR))
    workflow.set_parameters({"input_point": [[5, 5]]}, task_obj=algorithm)
    workflow.run_on(array=photograph)
    workflow.run_on(path=str(tmp_path / "a.png"))
    workflow.run_on(path=str(tmp_path / "b.png"))
    assert encodings.images == 1


def test_two_tasks_and_a_second_workflow_share_the_model_and_the_image(
    loads, workflow, algorithm, photograph, monkeypatch
):
    workflow.set_parameters({"input_point": [[5, 5]]}, task_obj=algorithm)
    second_task = workflow.add_task(name=PLUGIN, auto_connect=True)
    second_task.set_parameters({**algorithm.get_parameters(), "input_point": "", "input_text": "shoe"})
    second_workflow = Workflow()
    third_task = second_workflow.add_task(name=PLUGIN, auto_connect=True)
    third_task.set_parameters({**algorithm.get_parameters(), "input_point": "", "input_text": "shoe"})

    algorithm.init_long_process()
    calls = Calls(monkeypatch, algorithm._predictor.model.network)
    workflow.run_on(array=photograph)
    second_workflow.run_on(array=photograph)
    assert len(loads) == 1
    assert algorithm._predictor.model is second_task._predictor.model is third_task._predictor.model
    assert (calls.images, calls.texts, calls.detections) == (1, 1, 1)
    assert np.array_equal(second_task.get_output(1).get_mask(), third_task.get_output(1).get_mask())


def test_the_model_and_its_images_are_freed_with_the_last_workflow(plugins_directory, small_checkpoint, photograph):
    workflow = Workflow()
    task = workflow.add_task(name=PLUGIN, auto_connect=True)
    task.set_parameters({"model_weight_file": str(small_checkpoint), "cuda": "False", "input_text": "shoe"})
    workflow.run_on(array=photograph)
    model, embedding = weakref.ref(task._predictor.model), weakref.ref(task._predictor.encode_image(photograph))
    assert embedding() is not None
    del workflow, task
    gc.collect()
    assert model() is None
    assert embedding() is None


@pytest.fixture
def returned(emulated_cuda, monkeypatch):
    """Record the memory in use on each emulated GPU when PyTorch is asked to give back the rest."""
    memory = []
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: memory.append([emulated_cuda.allocated(0), emulated_cuda.allocated(1)])
    )
    return memory


def closed(predictor):
    predictor.close()


def dropped(predictor):
    pass


@pytest.mark.parametrize("goes", [closed, dropped])
def test_a_model_that_goes_gives_back_its_gpu_memory(emulated_cuda, returned, small_checkpoint, photograph, goes):
    gc.collect()
    gc.disable()  # nothing may wait for the garbage collector
    try:
        predictor = Predictor(load_model(small_checkpoint, torch.device("cuda", 1)))
        other_size = Predictor(predictor.model, 168)
        for one in (predictor, other_size):
            found = one.predict(photograph, ConceptPrompt(("shoe",)), Options(confidence_threshold=0))
            assert found[0].mask.shape == photograph.shape[:2]
        assert one.predict(photograph, BOX)
        del found, one
        goes(other_size)
        del other_size
        assert emulated_cuda.allocated(1) > 0
        assert returned == []
        goes(predictor)
        del predictor
        assert returned == [[0, 0]]  # after all of its tensors
    finally:
        gc.enable()


def test_a_model_on_a_gpu_that_is_replaced_goes_before_another_is_loaded(
    emulated_cuda, returned, small_checkpoint, tmp_path
):
    gpu = torch.device("cuda", 0)
    other = tmp_path / "other.pt"
    other.write_bytes(small_checkpoint.read_bytes())
    first = open_predictor(small_checkpoint, device=gpu)
    weights = emulated_cuda.allocated(0)
    assert open_predictor(small_checkpoint, device=gpu, replaces=first) is first
    assert returned == []
    torch.cuda.reset_peak_memory_stats(gpu)
    second = open_predictor(other, device=gpu, replaces=first)
    assert first.closed
    assert returned == [[0, 0]]
    assert torch.cuda.max_memory_allocated(gpu) == pytest.approx(weights, rel=0.1)
    del second
    assert returned == [[0, 0]] * 2


def test_a_model_without_a_predictor_gives_back_its_gpu_memory(emulated_cuda, returned, small_checkpoint):
    model = load_model(small_checkpoint, torch.device("cuda", 0))
    assert model.network_at(168) is not model.network
    del model
    assert returned == [[0, 0]]


def test_a_gpu_that_refuses_to_give_back_memory_disturbs_nobody(emulated_cuda, small_checkpoint, monkeypatch):
    def refuse():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    Predictor(load_model(small_checkpoint, torch.device("cuda", 0))).close()
    assert unraisable == []


def test_all_images_and_both_heads_share_the_position_tables(predictor, photograph):
    direct = DirectUse(predictor.model.network, predictor.model.precision, photograph)._state["backbone_out"]
    embeddings = [predictor.encode_image(image).features for image in (photograph, photograph[::-1])]
    embeddings.append(Predictor(predictor.model).encode_image(photograph[:, ::-1]).features)
    lists = [part["vision_pos_enc"] for features in embeddings for part in (features, features["sam2_backbone_out"])]
    assert len({id(tables) for tables in lists}) == 1
    for head in (direct, direct["sam2_backbone_out"]):
        assert len(head["vision_pos_enc"]) == len(lists[0])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(lists[0], head["vision_pos_enc"], strict=True))


def test_an_error_in_a_prompt_leaves_no_image_behind(predictor, photograph, monkeypatch):
    embedding = predictor.encode_image(photograph)
    interactive = predictor.model.network.inst_interactive_predictor
    with monkeypatch.context() as patched:
        patched.setattr(interactive.model.sam_mask_decoder, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predictor.segment(embedding, BOX)
    assert interactive._features is None
    assert predictor.segment(embedding, BOX)


def test_an_image_that_changes_while_its_run_waits_is_cached_by_what_was_encoded(small_checkpoint, photograph):
    """Ikomia passes the caller's array, which may be a camera's buffer."""
    predictor = Predictor(load_model(small_checkpoint, CPU))
    buffer, waiting, change = photograph.copy(), threading.Event(), threading.Event()

    def hold():
        with predictor.model.exclusive_inference():
            waiting.set()
            change.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    waiting.wait(20)
    runner = threading.Thread(target=predictor.encode_image, args=(buffer,))
    runner.start()
    runner.join(0.5)  # long enough for it to reach the lock
    buffer[:] = photograph[::-1]
    change.set()
    holder.join(20)
    runner.join(20)

    alone = Predictor(load_model(small_checkpoint, CPU))
    for image in (photograph, photograph[::-1]):
        found, wanted = (one.segment(one.encode_image(image), BOX)[0] for one in (predictor, alone))
        assert (found.score, found.mask.tobytes()) == (wanted.score, wanted.mask.tobytes())
