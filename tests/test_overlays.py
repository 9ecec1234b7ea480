"""Ikomia's overlays of images of any kind, and the colors of objects in them."""

import cv2
import numpy as np
import PIL.Image
import pytest
from ikomia import core, dataprocess
from ikomia.dataprocess.workflow import Workflow

from sam3_engine.images import as_rgb8

BOXES = [[10, 15, 75, 80], [2, 2, 150, 100], [60, 30, 140, 95]]


@pytest.fixture
def thumbnail(photograph):
    """Return a (107, 160, 3) uint8 RGB image."""
    return np.ascontiguousarray(photograph[::4, ::4])


@pytest.fixture
def run(workflow, algorithm):
    """Return a function that runs the plugin on an image with only the given prompt."""

    def run_with(parameters, **image):
        workflow.set_parameters({"input_text": "", "input_box": "", **parameters}, task_obj=algorithm)
        workflow.run_on(**image)

    return run_with


def with_alpha(image):
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


UNTOUCHED = {
    "gray": lambda rgb: rgb[:, :, 1],
    "gray, one channel": lambda rgb: rgb[:, :, 1:2],
    "RGB": lambda rgb: rgb,
}
CONVERTED = {
    "gray and alpha": lambda rgb: with_alpha(rgb[:, :, 1]),
    "RGB and alpha": with_alpha,
    "16-bit RGB": lambda rgb: rgb.astype(np.uint16) * 257,
    "16-bit gray": lambda rgb: rgb[:, :, 1].astype(np.uint16) * 257,
    "float 0 to 1": lambda rgb: rgb.astype(np.float32) / 255,
    "float 0 to 255": lambda rgb: rgb.astype(np.float64),
}


def displayed(algorithm, shape):
    """Return the overlays of an image, after checks that they can be displayed."""
    overlays = [
        algorithm.get_image_with_mask(),  # as in the README
        algorithm.get_image_with_mask_and_graphics(),
        *(algorithm.get_output(0).get_image_with_mask(output) for output in algorithm.get_outputs()[1:]),
        *(algorithm.get_output(0).get_image_with_mask_and_graphics(output) for output in algorithm.get_outputs()[1:]),
    ]
    for overlay in overlays:
        assert (overlay.shape, overlay.dtype) == ((*shape[:2], 3), np.uint8)
        assert PIL.Image.fromarray(overlay).mode == "RGB"
    return overlays


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_8_bit_images_with_one_or_three_channels_are_output_as_they_are(run, algorithm, thumbnail, kind):
    image = np.ascontiguousarray(UNTOUCHED[kind](thumbnail))
    run({"input_box": BOXES, "instance_output": True}, array=image)
    output = algorithm.get_output(0).get_image()
    assert output.dtype == np.uint8
    assert output.shape == image.shape
    assert np.array_equal(output, image)
    displayed(algorithm, image.shape)


@pytest.mark.parametrize("kind", CONVERTED)
def test_other_images_are_output_and_overlaid_as_the_network_sees_them(run, algorithm, thumbnail, kind):
    image = np.ascontiguousarray(CONVERTED[kind](thumbnail))
    equivalent = np.repeat(thumbnail[:, :, 1:2], 3, axis=2) if "gray" in kind else thumbnail
    prompt = {"input_box": BOXES, "instance_output": True}
    run(prompt, array=equivalent)
    expected = displayed(algorithm, equivalent.shape)
    run(prompt, array=image)
    assert np.array_equal(algorithm.get_output(0).get_image(), equivalent)
    assert np.array_equal(algorithm.get_input(0).get_image(), image)
    for overlay, reference in zip(displayed(algorithm, equivalent.shape), expected, strict=True):
        assert np.array_equal(overlay, reference)


def write_cmyk(path, image):
    PIL.Image.fromarray(image).convert("CMYK").save(path)


def write_bgr(path, image):
    assert cv2.imwrite(str(path), image)


FILES = {
    "alpha.png": lambda path, rgb: write_bgr(path, with_alpha(rgb[:, :, ::-1])),
    "cmyk.jpg": write_cmyk,
    "cmyk.tif": write_cmyk,
    "palette.png": lambda path, rgb: PIL.Image.fromarray(rgb).convert("P").save(path),
    "gray and alpha.png": lambda path, rgb: PIL.Image.fromarray(rgb).convert("LA").save(path),
    "16-bit.png": lambda path, rgb: write_bgr(path, rgb[:, :, ::-1].astype(np.uint16) * 257),
    "float.tif": lambda path, rgb: write_bgr(path, rgb[:, :, ::-1].astype(np.float32) / 255),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_kind_are_overlaid_and_keep_their_path(run, algorithm, thumbnail, tmp_path, name):
    FILES[name](tmp_path / name, thumbnail)
    run({"input_box": BOXES, "instance_output": True}, path=str(tmp_path / name))
    displayed(algorithm, thumbnail.shape)
    output = algorithm.get_output(0)
    assert output.source_file_path == algorithm.get_input(0).source_file_path == str(tmp_path / name)
    image = algorithm.get_input(0).get_image()
    is_plain = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert np.array_equal(output.get_image(), image if is_plain else as_rgb8(image))


@pytest.mark.parametrize("image", [np.full((20, 30, 3), np.nan, np.float32), np.zeros((20, 30, 4), np.uint16)])
def test_without_a_prompt_no_image_is_an_error(run, algorithm, image):
    run({}, array=image)
    assert algorithm.get_output(1).description == "nothing to segment: no prompt"


# --- colors of objects


def tinted(image, color):
    return cv2.addWeighted(image, 0.3, np.broadcast_to(np.uint8(color), image.shape).copy(), 0.7, 0)


def test_each_object_is_tinted_in_the_color_that_the_legend_gives_it(run, algorithm, thumbnail):
    prompt = {"input_text": '["shoe", "hat"]', "confidence_threshold": 0, "instance_output": True}
    run(prompt, array=thumbnail)
    image, mask_output, objects = algorithm.get_outputs()
    overlay = image.get_image_with_mask(objects)
    numbers = mask_output.get_mask()
    assert len(np.unique(numbers)) > 4
    for number, color in enumerate(mask_output.get_colors()):
        inside = numbers == number
        expected = tinted(thumbnail, color) if number else thumbnail
        assert np.array_equal(overlay[inside], expected[inside])
    by_id = {found.id: found.color[:3] for found in objects.get_objects()}
    assert [by_id[number] for number in range(1, len(by_id) + 1)] == mask_output.get_colors()[1:]


def test_objects_of_boxes_are_tinted_in_the_color_of_their_mask(run, algorithm, thumbnail):
    run({"input_box": BOXES, "instance_output": True}, array=thumbnail)
    image, first, objects, *further = algorithm.get_outputs()
    masks = [first, *further]
    scores = [found.confidence for found in objects.get_objects()]
    expected = thumbnail.copy()
    for index in np.argsort(scores):  # where they overlap, the higher score wins
        inside = masks[index].get_mask() == 1
        expected[inside] = tinted(thumbnail, masks[index].get_colors()[1])[inside]
    overlay = image.get_image_with_mask(objects)
    assert np.array_equal(overlay, expected)
    assert len({tuple(output.get_colors()[1]) for output in masks}) == len(BOXES)

    graphics = image.get_image_with_graphics(objects.get_graphics_io())
    both = image.get_image_with_mask_and_graphics(objects)
    free = (graphics == thumbnail).all(axis=2)
    assert np.array_equal(both[free], expected[free])
    assert not np.array_equal(both, overlay)


def test_objects_of_different_classes_are_drawn_as_by_ikomia(run, algorithm, thumbnail):
    """Ikomia's own colors are right if no two objects overlap or share a class, so ours must be the same there."""
    run({"input_box": BOXES[0]}, array=thumbnail)
    image, plain = algorithm.get_output(0), dataprocess.CImageIO(core.IODataType.IMAGE, thumbnail, "")
    objects = dataprocess.CInstanceSegmentationIO()
    objects.init("task", 0, 160, 107)
    for index, (left, top) in enumerate(((5, 5), (70, 40), (110, 80))):
        mask = np.zeros((107, 160), np.uint8)
        mask[top : top + 20, left : left + 30] = 1
        color = [200, 30 * index, 255 - 90 * index]
        objects.add_object(index + 1, 0, index, f"class {index}", 0.5, left, top, 30, 20, mask, color)
    assert np.array_equal(image.get_image_with_mask(objects), plain.get_image_with_mask(objects))
    ours, theirs = image.get_image_with_mask_and_graphics(objects), plain.get_image_with_mask_and_graphics(objects)
    assert np.array_equal(ours, theirs)


def test_objects_loaded_from_a_file_are_drawn_in_their_colors(run, algorithm, thumbnail, tmp_path):
    run({"input_box": BOXES, "instance_output": True}, array=thumbnail)
    image, objects = algorithm.get_output(0), algorithm.get_output(2)
    objects.save(str(tmp_path / "objects.json"))
    loaded = dataprocess.CInstanceSegmentationIO()
    loaded.load(str(tmp_path / "objects.json"))
    assert np.array_equal(image.get_image_with_mask(loaded), image.get_image_with_mask(objects))


def test_an_output_without_objects_leaves_the_image_as_it_is(run, algorithm, thumbnail):
    run({"input_text": "shoe", "confidence_threshold": 1, "instance_output": True}, array=thumbnail)
    image, _, objects = algorithm.get_outputs()
    assert objects.get_object_count() == 0
    assert np.array_equal(image.get_image_with_mask(objects), thumbnail)
    assert np.array_equal(image.get_image_with_mask_and_graphics(objects), thumbnail)


def test_overlays_of_a_video_and_of_the_image_after_it_can_be_displayed(run, workflow, algorithm, thumbnail, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (160, 107))
    for _ in range(2):
        writer.write(thumbnail)
    writer.release()
    run({"input_box": BOXES, "instance_output": True}, path=str(tmp_path / "clip.avi"))
    run({"input_box": BOXES, "instance_output": True}, array=with_alpha(thumbnail))
    assert np.array_equal(algorithm.get_output(0).get_image(), thumbnail)
    displayed(algorithm, thumbnail.shape)


def test_a_downstream_task_gets_the_image_that_is_displayed(workflow, algorithm, thumbnail):
    blur = workflow.add_task(name="ocv_box_filter", auto_connect=False)
    workflow.connect_tasks(algorithm, blur, [(0, 0)])
    workflow.run_on(array=with_alpha(thumbnail))
    assert blur.get_input(0).get_image().shape == thumbnail.shape
    reference = Workflow()
    alone = reference.add_task(name="ocv_box_filter", auto_connect=True)
    reference.run_on(array=thumbnail)
    assert np.array_equal(blur.get_output(0).get_image(), alone.get_output(0).get_image())
