"""Use the plugin with only ikomia installed, for :mod:`test_hub`, possibly in another environment.

    python hub_user.py http://127.0.0.1:8000 plugins_folder sam3.pt picture.png

Prints the results as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path

from ikomia.core import config
from ikomia.dataprocess.registry import ik_registry
from ikomia.dataprocess.workflow import Workflow


def main():
    url, plugins, checkpoint, picture = sys.argv[1:]
    config.main_cfg["hub"]["url"] = url
    ik_registry.set_plugins_directory(f"{plugins}/")

    workflow = Workflow()
    algorithm = workflow.add_task(name="infer_segment_anything_3", auto_connect=True)
    algorithm.set_parameters({"model_weight_file": checkpoint, "cuda": "False", "input_box": "[60, 80, 300, 330]"})
    workflow.run_on(path=picture)
    (mask,) = algorithm.get_outputs()[1:]
    installed = Path(plugins) / "Python" / "infer_segment_anything_3"
    found = {
        "module": sys.modules[type(algorithm).__module__].__file__,
        "files": sorted(str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()),
        "description": mask.description,
        "digest": hashlib.sha256(mask.get_mask()).hexdigest(),
    }
    print(json.dumps(found))


main()
