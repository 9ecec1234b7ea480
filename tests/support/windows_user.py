"""Use the plugin and sam3_batch, for :mod:`test_windows`.

Reads what to use from standard input and prints what came out, both as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from ikomia.dataprocess.workflow import Workflow
from like_windows import refuse_links

from sam3_batch import command_line
from sam3_batch.dataset import DatasetWriter, check_same_run, open_dataset
from sam3_batch.folders import Folder
from sam3_batch.workers import Segmenter, decode_images, encode_rows
from sam3_engine import read_image
from sam3_engine.settings import Settings
from testbed.plugin import PLUGIN, Plugin, register_checkout


def answers(weights, image, prompts):
    """Return the descriptions and digests of the masks for each prompt."""
    plugin = Plugin(model_weight_file=weights, cuda=False)
    return [
        [[mask.description, hashlib.sha256(mask.get_mask()).hexdigest()] for mask in plugin.segment(image, **prompt)]
        for prompt in prompts
    ]


def refusal(weights):
    """Return the message of the error for weights that cannot be used."""
    try:
        Plugin(model_weight_file=weights, cuda=False).segment(np.zeros((9, 9, 3), np.uint8), input_point=[5, 5])
    except RuntimeError as error:
        return str(error)
    return None


def run_folder(weights, folder, results, prompt):
    """Segment a folder with Ikomia; return the names of the files."""
    workflow = Workflow()
    algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
    algorithm.set_parameters({"model_weight_file": weights, "cuda": False, "instance_output": True, **prompt})
    workflow.output_folder = f"{results}/"
    workflow.run_on(folder=folder)
    return sorted(path.name for path in Path(results).rglob("*") if path.is_file())


def run_batch(weights, folder, results, prompt):
    """Segment a folder with the steps of sam3_batch, without Ray; return the rows of the dataset."""
    settings = Settings(cuda=False, model_weight_file=weights).updated({name: str(prompt[name]) for name in prompt})
    source, output = Folder(folder), Folder(results)
    command_line._check_folders(source, output)
    for _ in range(2):  # a new run, and one that continues
        check_same_run(output, {"input": folder}, defaults={})
    images = decode_images(pa.table({"path": source.files()}), source)
    writer = DatasetWriter(output)
    writer.add(encode_rows(Segmenter(settings, keep_pixels=True)(images), output, label_maps=True, overlays=True))
    writer.flush()
    rows = open_dataset(output).to_table().to_pylist()
    return [[row["path"], row["error"], len(row["instances"] or ())] for row in rows], output.files()


def main():
    task = json.load(sys.stdin)
    register_checkout()  # needs a link
    refuse_links()
    image = read_image(f"{task['folder']}/a.png")
    found = {
        "answers": answers(task["weights"], image, task["prompts"]),
        "refusals": [refusal(weights) for weights in task["unusable"]],
        "downloaded": answers(task["to_download"], image, task["prompts"][:1]),
        "ikomia": run_folder(task["weights"], task["plain_folder"], task["plain_results"], task["prompts"][0]),
        "batch": run_batch(task["weights"], task["folder"], task["results"], task["prompts"][0]),
    }
    print(json.dumps(found))


main()
