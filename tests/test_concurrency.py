"""Many threads, tasks and workflows on one model: results are those of a single thread, without deadlocks."""

import concurrent.futures
import gc
import threading

import numpy as np
import pytest

from testbed.plugin import Plugin

THREADS = 8
ROUNDS = 3
TIMEOUT = 240
PROMPTS = [
    {"input_text": "shoe", "confidence_threshold": 0},
    {"input_text": ["shoe", "hat"], "confidence_threshold": 0, "instance_output": True},
    {"input_box": [[60, 80, 300, 330], [5, 5, 635, 420]], "multimask_output": True},
    {"input_box": [60, 80, 300, 330], "input_box_label": [1], "confidence_threshold": 0},
    {"input_point": [[210, 150]]},
    {"input_point": [[210, 150], [500, 300]], "input_point_label": [1, 0], "model_input_size": 168},
    {"input_box": [[60, 80, 300, 330]], "input_size_percent": 50},
]


@pytest.fixture(scope="module")
def images(photograph):
    return [photograph, photograph[::-1], photograph[:, ::-1], photograph[::-1, ::-1]]


def contents(plugin, image, prompt):
    options = {"model_input_size": 0, "input_size_percent": 100, **prompt}
    outputs = plugin.segment(image, **options)
    masks = outputs[:-1] if prompt.get("instance_output") else outputs
    return [(output.description, output.get_mask().tobytes()) for output in masks]


def jobs(images, thread):
    """Return a thread's images and prompts; each thread has its own order."""
    return [
        (images[(thread + step) % len(images)], PROMPTS[(3 * thread + step) % len(PROMPTS)])
        for step in range(ROUNDS * 2)
    ]


def test_two_tasks_in_each_of_eight_threads_give_the_results_of_a_single_task(small_checkpoint, images):
    alone = Plugin(model_weight_file=small_checkpoint, cuda=False)
    wanted = [[contents(alone, *job) for job in jobs(images, thread)] for thread in range(THREADS)]
    together = threading.Barrier(THREADS)

    def work(thread):
        plugins = [Plugin(model_weight_file=small_checkpoint, cuda=False) for _ in range(2)]
        together.wait(TIMEOUT)
        return [contents(plugins[step % 2], *job) for step, job in enumerate(jobs(images, thread))]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, thread) for thread in range(THREADS)]
        found = [future.result(timeout=TIMEOUT) for future in futures]
    assert found == wanted


def test_tasks_can_be_created_and_deleted_while_others_run(small_checkpoint, images):
    alone = Plugin(model_weight_file=small_checkpoint, cuda=False)
    wanted = [contents(alone, image, PROMPTS[2]) for image in images]
    stop = threading.Event()
    made = []

    def come_and_go():
        while not stop.is_set():
            made.append(contents(Plugin(model_weight_file=small_checkpoint, cuda=False), images[0], PROMPTS[4]))
            gc.collect()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        comers = [pool.submit(come_and_go) for _ in range(2)]
        runners = [pool.submit(lambda: [contents(alone, image, PROMPTS[2]) for image in images]) for _ in range(1)]
        found = [runner.result(timeout=TIMEOUT) for runner in runners]
        stop.set()
        for comer in comers:
            comer.result(timeout=TIMEOUT)
    assert found == [wanted]
    assert len(made) > 1
    assert all(one == made[0] for one in made)


def test_errors_in_one_thread_do_not_affect_the_others(small_checkpoint, images):
    def work(thread):
        plugin = Plugin(model_weight_file=small_checkpoint, cuda=False)
        found = []
        for image, prompt in jobs(images, 1):
            if thread % 2:
                with pytest.raises(RuntimeError, match="input_point = "):
                    plugin.segment(image, input_point="[[1, 2")
            found.append(contents(plugin, image, prompt))
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first, *others = [future.result(timeout=TIMEOUT) for future in [pool.submit(work, n) for n in range(4)]]
    assert all(other == first for other in others)
    assert any(np.frombuffer(mask, np.uint8).any() for run in first for _, mask in run)
