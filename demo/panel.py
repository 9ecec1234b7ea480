"""Draw the settings panel of Ikomia Studio, without a screen.

python -m demo.panel    # writes demo/output/panel_empty.png, panel_filled.png and panel_error.png
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.plugin import PLUGIN, register_checkout

OUTPUT = Path(__file__).resolve().parent / "output"
SIZE = 460, 550  # of the pictures, in pixels

FILLED = {
    "input_box": "[[425, 600, 700, 875]]",
    "input_point": "[[575, 750]]",
    "input_point_label": "[0]",
    "multimask_output": "True",
    "model_weight_file": "facebook/sam3",
}
MALFORMED = {"input_box": "[[425, 600, 700", "input_point": "[[500, 375], [1125, 625]]", "input_point_label": "[1]"}


def open_panel(parameters: Mapping[str, str]) -> Any:
    """Open the settings panel with values for some of the parameters.

    Needs a ``QApplication``. Keep a reference to the panel as long as you use its ``window``, a ``QWidget``.
    """
    sys.path.insert(0, str(Path(register_checkout().name) / "Python"))
    entry = importlib.import_module(f"{PLUGIN}.{PLUGIN}").IkomiaPlugin()
    values = entry.get_param_factory().create()
    values.set_values(dict(parameters))
    panel = entry.get_widget_factory().create(values)
    panel.window = panel._layout.parentWidget().window()
    panel.window.show()
    return panel


def save_picture(parameters: Mapping[str, str], path: Path) -> None:
    """Write a picture of the panel as PNG. Needs a ``QApplication``."""
    from PyQt6.QtWidgets import QApplication

    panel = open_panel(parameters)
    panel.window.resize(*SIZE)
    QApplication.processEvents()
    panel.window.grab().save(str(path))


def main() -> None:
    """Write the pictures."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import ikomia  # noqa: F401 - must load its Qt before PyQt does

    # isort: split
    from PyQt6.QtWidgets import QApplication

    application = QApplication([])
    OUTPUT.mkdir(exist_ok=True)
    for name, parameters in (("empty", {}), ("filled", FILLED), ("error", MALFORMED)):
        save_picture(parameters, OUTPUT / f"panel_{name}.png")
        print(f"demo/output/panel_{name}.png")
    application.quit()


if __name__ == "__main__":
    main()
