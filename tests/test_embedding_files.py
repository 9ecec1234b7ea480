"""Embeddings in a folder: another process has the same answers without encoding, and no file is trusted blindly."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sam3_engine import embedding_files, open_predictor
from sam3_engine.model import load_model
from sam3_engine.options import Options
from sam3_engine.predictor import Predictor
from sam3_engine.prompts import ConceptPrompt, EverythingPrompt, GeometricPrompt
from testbed.layout_files import (
    as_fine_tuned,
    as_transformers_click_head,
    read_contents,
    write_safetensors,
    write_torch,
)
from testbed.plugin import REPOSITORY, Plugin

CPU = torch.device("cpu")
EVERY_MASK = Options(confidence_threshold=0, predicted_iou_threshold=0, stability_score_threshold=0)
CONCEPTS = {
    "phrase": ConceptPrompt(("shoe",)),
    "example": ConceptPrompt(boxes=((60.0, 80.0, 300.0, 330.0),), box_labels=(1,)),
}
OUTLINES = {
    "boxes": GeometricPrompt(boxes=((60.0, 80.0, 300.0, 330.0), (5.0, 5.0, 635.0, 420.0))),
    "everything": EverythingPrompt(3),
}
PROMPTS = {**CONCEPTS, **OUTLINES}


class EncodedError(Exception):
    pass


@pytest.fixture
def open_in_folder(tmp_path, small_checkpoint):
    """Return a function that loads a model anew, as another process does, and opens a predictor with the folder."""

    def open_it(checkpoint=small_checkpoint, precision=torch.float32, input_size=0, folder=tmp_path / "cache"):
        return Predictor(load_model(checkpoint, CPU, precision), input_size, folder)

    return open_it


def refuse_to_encode(predictor):
    """Let a predictor fail if it runs the image encoder."""

    def fail(*_):
        raise EncodedError

    predictor._run_encoder = fail
    return predictor


def answers(predictor, image, prompts=PROMPTS, **options):
    return {
        name: [
            (one.score, one.label, one.mask.tobytes(), one.box)
            for one in predictor.predict(image, prompt, dataclasses.replace(EVERY_MASK, **options))
        ]
        for name, prompt in prompts.items()
    }


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "sam3_engine.embedding_files"]


def files_in(folder):
    return sorted(folder.glob("sam3-*.safetensors"))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("input_size", [0, 56])
def test_another_process_has_the_same_answers_without_encoding(
    open_in_folder, small_checkpoint, photograph, tmp_path, precision, input_size
):
    wanted = answers(Predictor(load_model(small_checkpoint, CPU, precision), input_size), photograph)
    assert answers(open_in_folder(precision=precision, input_size=input_size), photograph) == wanted
    assert len(files_in(tmp_path / "cache")) == 1
    second = refuse_to_encode(open_in_folder(precision=precision, input_size=input_size))
    assert answers(second, photograph) == wanted
    assert all(wanted.values())


def test_tiles_are_kept_too(open_in_folder, photograph):
    first = answers(open_in_folder(), photograph, tile_size=300)
    assert answers(refuse_to_encode(open_in_folder()), photograph, tile_size=300) == first


@pytest.mark.parametrize(("convert", "prompts"), [(as_fine_tuned, CONCEPTS), (as_transformers_click_head, OUTLINES)])
def test_checkpoints_with_one_head_keep_its_features(
    open_in_folder, small_checkpoint, photograph, tmp_path, convert, prompts
):
    contents = read_contents(small_checkpoint)
    part = write_torch(tmp_path / "part.pt", convert(contents.tensors), contents.architecture)
    first = answers(open_in_folder(part), photograph, prompts)
    again = refuse_to_encode(open_in_folder(part))
    assert answers(again, photograph, prompts) == first
    assert again.encode_image(photograph).is_finite()


def test_the_same_weights_in_another_file_are_recognized(open_in_folder, small_checkpoint, photograph, tmp_path):
    first = answers(open_in_folder(), photograph)
    contents = read_contents(small_checkpoint)
    copy = write_safetensors(tmp_path / "copy.safetensors", contents.tensors, contents.architecture)
    assert answers(refuse_to_encode(open_in_folder(copy)), photograph) == first


def test_anything_that_changes_the_embedding_is_encoded_again(open_in_folder, small_checkpoint, photograph, tmp_path):
    open_in_folder().encode_image(photograph)
    contents = read_contents(small_checkpoint)
    name = next(name for name in contents.tensors if name.endswith("trunk.blocks.1.mlp.fc1.weight"))
    tuned = {**contents.tensors, name: contents.tensors[name] * 1.001}
    other_weights = write_torch(tmp_path / "tuned.pt", tuned, contents.architecture)
    other_pixels = photograph.copy()
    other_pixels[0, 0, 0] ^= 1
    for predictor, image, percent in (
        (open_in_folder(), other_pixels, 100),
        (open_in_folder(), photograph, 50),
        (open_in_folder(), np.ascontiguousarray(photograph.reshape(640, 427, 3)), 100),
        (open_in_folder(input_size=56), photograph, 100),
        (open_in_folder(precision=torch.bfloat16), photograph, 100),
        (open_in_folder(other_weights), photograph, 100),
    ):
        with pytest.raises(EncodedError):
            refuse_to_encode(predictor).encode_image(image, percent)


def damage(path, kind):
    contents = path.read_bytes()
    if kind == "cut":
        path.write_bytes(contents[: len(contents) // 2])
    elif kind == "a changed bit":
        path.write_bytes(contents[:-100] + bytes([contents[-100] ^ 1]) + contents[-99:])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is not an embedding.")
    elif kind == "much larger":
        path.write_bytes(contents + bytes(10_000_000))
    else:
        tensors = load_file(path)
        del tensors["digest"]
        name = next(iter(tensors))
        changed = {
            "another shape": lambda: {**tensors, name: tensors[name][:, :-1].contiguous()},
            "a map less": lambda: {other: one for other, one in tensors.items() if other != name},
            "another map": lambda: {**tensors, "other": tensors[name].clone()},
            "whole numbers": lambda: {**tensors, name: tensors[name].to(torch.int32)},
        }[kind]()
        digest = torch.tensor(list(embedding_files._digest_of(changed)), dtype=torch.uint8)
        save_file({**changed, "digest": digest}, path)


@pytest.mark.parametrize(
    "kind",
    [
        *("cut", "a changed bit", "empty", "text", "much larger"),
        *("another shape", "a map less", "another map", "whole numbers"),
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_rewritten(open_in_folder, photograph, tmp_path, caplog, kind):
    wanted = answers(open_in_folder(), photograph)
    (path,) = files_in(tmp_path / "cache")
    intact = hashlib.sha256(path.read_bytes()).hexdigest()
    damage(path, kind)
    with pytest.raises(EncodedError):
        refuse_to_encode(open_in_folder()).encode_image(photograph)
    assert answers(open_in_folder(), photograph) == wanted
    assert hashlib.sha256(path.read_bytes()).hexdigest() == intact
    assert warned(caplog) == []


def test_the_least_recently_used_files_go_first(open_in_folder, photograph, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("mine.safetensors", "sam3-notes.txt"):
        (folder / name).write_bytes(bytes(100_000))
        os.utime(folder / name, (0, 0))
    fresh, abandoned = folder / "sam3-a.unfinished", folder / "sam3-b.unfinished"
    for path in (fresh, abandoned):
        path.touch()
    os.utime(abandoned, (time.time() - 7200,) * 2)
    images = [np.roll(photograph, shift, axis=1) for shift in range(4)]
    paths = []
    for age, image in zip((400, 300, 200), images, strict=False):
        open_in_folder().encode_image(image)
        (path,) = set(files_in(folder)) - set(paths)
        os.utime(path, (time.time() - age,) * 2)
        paths.append(path)
    assert (fresh.exists(), abandoned.exists()) == (True, False)
    monkeypatch.setattr(embedding_files, "_MOST_BYTES", 3 * paths[0].stat().st_size)
    refuse_to_encode(open_in_folder()).encode_image(images[0])  # used again, so the second is the oldest now
    open_in_folder().encode_image(images[3])
    left = files_in(folder)
    assert len(left) == 3
    assert paths[1] not in left
    assert (folder / "mine.safetensors").exists()
    assert (folder / "sam3-notes.txt").exists()


@pytest.mark.parametrize("folder", ["file/in a file", "nul\0character"])
def test_a_folder_that_cannot_be_written_gives_one_warning(
    open_in_folder, small_checkpoint, photograph, tmp_path, caplog, folder
):
    (tmp_path / "file").touch()
    predictor = open_in_folder(folder=tmp_path / folder)
    wanted = answers(Predictor(load_model(small_checkpoint, CPU, torch.float32)), photograph)
    assert answers(predictor, photograph) == wanted
    predictor.encode_image(photograph[::2])
    (message,) = warned(caplog)
    assert message.startswith("embedding_cache_folder = '")
    assert message.endswith("Embeddings are not kept.")


def test_a_write_that_fails_leaves_nothing(open_in_folder, photograph, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    predictor = open_in_folder()
    monkeypatch.setattr(os, "replace", fail)
    predictor.encode_image(photograph)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "nothing can be written there (No space left on device)" in warned(caplog)[0]


def test_an_embedding_with_nan_is_not_kept(open_in_folder, small_checkpoint, photograph, tmp_path):
    contents = read_contents(small_checkpoint)
    name = next(name for name in contents.tensors if name.endswith("trunk.blocks.1.mlp.fc1.weight"))
    broken = {**contents.tensors, name: torch.full_like(contents.tensors[name], float("nan"))}
    open_in_folder(write_torch(tmp_path / "broken.pt", broken, contents.architecture)).encode_image(photograph)
    assert files_in(tmp_path / "cache") == []


def test_two_processes_may_use_the_folder_at_once(small_checkpoint, tmp_path):
    code = """
import hashlib, sys
import numpy as np
from sam3_engine import GeometricPrompt, open_predictor
predictor = open_predictor(sys.argv[1], cuda=False, embedding_cache_folder=sys.argv[2])
image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
digest = hashlib.sha256()
for shift in range(40):
    prompt = GeometricPrompt(boxes=((10, 10, 90, 90),))
    (segment,) = predictor.predict(np.roll(image, shift % 20, axis=1), prompt)
    digest.update(segment.mask.tobytes())
print(digest.hexdigest())
"""
    command = [sys.executable, "-c", code, str(small_checkpoint), str(tmp_path / "cache")]
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert ended[0][0] == ended[1][0] != ""
    assert len(files_in(tmp_path / "cache")) == len(list((tmp_path / "cache").iterdir())) == 20


def test_the_plugin_keeps_embeddings_in_the_folder(shapes_checkpoint, photograph, tmp_path):
    image = np.ascontiguousarray(photograph[::3, ::3])
    plugin = Plugin(model_weight_file=shapes_checkpoint, cuda=False, embedding_cache_folder=f' "{tmp_path / "cache"}" ')
    plugin.segment(image, input_point=[[50, 50]])
    assert len(files_in(tmp_path / "cache")) == 1
    Plugin(model_weight_file=shapes_checkpoint, cuda=False).segment(
        np.ascontiguousarray(image[::-1]), input_point=[[50, 50]]
    )
    assert len(files_in(tmp_path / "cache")) == 1


def test_a_predictor_is_used_again_only_with_the_same_folder(small_checkpoint, tmp_path):
    first = open_predictor(small_checkpoint, cuda=False, embedding_cache_folder=tmp_path)
    assert open_predictor(small_checkpoint, cuda=False, embedding_cache_folder=tmp_path, replaces=first) is first
    without = open_predictor(small_checkpoint, cuda=False, replaces=first)
    assert without is not first
    assert without.model is first.model
