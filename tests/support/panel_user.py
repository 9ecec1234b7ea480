"""Type into the settings panel and press Apply, in real Qt, for :mod:`test_panel`.

Reads tasks as JSON from standard input, one per line, and prints the results as JSON. It is a separate process,
because a process can have only one ``QApplication``.
"""

import hashlib
import json
import re
import sys

from ikomia.dataprocess.workflow import Workflow  # load its Qt before PyQt's

# isort: split
from PyQt6.QtCore import QPoint, QPointF, Qt
from PyQt6.QtGui import QWheelEvent
from PyQt6.QtTest import QTest
from PyQt6.QtWidgets import (
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QLabel,
    QLineEdit,
    QPushButton,
    QToolButton,
)

from demo.panel import open_panel
from testbed.plugin import PLUGIN

FIELDS = (QCheckBox, QAbstractSpinBox, QLineEdit, QComboBox)


def field(panel, name):
    return next(found for kind in FIELDS if (found := panel.window.findChild(kind, name)) is not None)


def type_into(widget, value):
    if isinstance(widget, QCheckBox):
        widget.setChecked(value)
    elif isinstance(widget, QLineEdit):
        widget.setText(value)
    elif isinstance(widget, QComboBox) and not widget.isEditable():
        choose_in(widget, value)
    elif isinstance(widget, QComboBox):
        widget.clearEditText()
        QTest.keyClicks(widget.lineEdit(), value)  # completion would act on keys
        QTest.keyClick(widget.lineEdit(), Qt.Key.Key_Return)
    else:
        widget.setValue(value)


def choose_in(widget, item):
    widget.showPopup()
    choices = widget.view()
    (row,) = [row for row in range(widget.count()) if widget.itemText(row) == item]
    choices.setCurrentIndex(choices.model().index(row, 0))
    QTest.keyClick(choices, Qt.Key.Key_Return)


def turn_wheel_over(widget):
    """Turn the mouse wheel two notches down."""
    for _ in range(2):
        middle = QPointF(widget.rect().center())
        buttons, keys, phase = Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase
        notch = QWheelEvent(middle, middle, QPoint(), QPoint(0, -120), buttons, keys, phase, False)
        QApplication.sendEvent(widget, notch)


def shown_in(widget):
    if isinstance(widget, QComboBox):
        return widget.currentText()
    return widget.isChecked() if isinstance(widget, QCheckBox) else widget.text()


def press_keys_in(widget, keys):
    """Click into the text of a field and press keys; those with names are in angle brackets."""
    QApplication.processEvents()  # lay out what was just unfolded
    text = widget.findChild(QLineEdit) or widget
    QTest.mouseClick(text, Qt.MouseButton.LeftButton)
    if isinstance(text, QLineEdit) and not text.hasSelectedText():
        QTest.keyClick(widget, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    for key in re.findall("<[^>]+>|.", keys):
        if key == "<Wheel>":
            turn_wheel_over(widget)
        elif len(key) > 1:
            QTest.keyClick(widget, getattr(Qt.Key, f"Key_{key[1:-1]}"))
        else:
            QTest.keyClicks(widget, key)


def press(panel, text, kind=QPushButton):
    next(button for button in panel.window.findChildren(kind) if button.text() == text).click()


def digest(mask):
    return hashlib.sha256(mask.get_mask()).hexdigest()


def message_below(panel, name):
    message = panel.window.findChild(QLabel, f"{name} message")
    return "" if message.isHidden() else message.text()


def look_at(panel):
    names = panel.parameters.get_values()
    messages = {name: text for name in names if (text := message_below(panel, name))}
    return {
        "marked": [name for name in names if "red" in field(panel, name).styleSheet()],
        "messages": messages,
        "tooltips": {name: field(panel, name).toolTip() for name in names},
        "labels": [label.text() for label in panel.window.findChildren(QLabel) if label.buddy()],
        "visible": [name for name in names if field(panel, name).isVisible()],
        "disabled": [name for name in names if not field(panel, name).isEnabled()],
        "shown": {name: shown_in(field(panel, name)) for name in names},
        "choices": {
            name: [widget.itemText(row) for row in range(widget.count())]
            for name in names
            if isinstance(widget := field(panel, name), QComboBox)
        },
    }


def perform(task):
    panel = open_panel(task.get("given", {}))
    found = {"opened": look_at(panel)}
    if "chosen_file" in task:
        QFileDialog.getOpenFileName = lambda *_: (task["chosen_file"], "")
        press(panel, "Browse...")
    if "unfolded" in task:
        press(panel, "Advanced", QToolButton)
    for name, value in task.get("typed", {}).items():
        type_into(field(panel, name), value)
    for name, item in task.get("chosen", {}).items():
        choose_in(field(panel, name), item)
    for name in task.get("wheel_over", ()):
        turn_wheel_over(field(panel, name))
    for name, keys in task.get("keys", {}).items():
        press_keys_in(field(panel, name), keys)
    found["without Apply"] = panel.parameters.get_values()
    found["typed"] = look_at(panel)
    for name, value in task.get("corrected", {}).items():
        type_into(field(panel, name), value)
    press(panel, "Apply")
    found["applied"] = panel.parameters.get_values()
    found["torch or sam3"] = [name for name in ("torch", "sam3") if name in sys.modules]
    again = open_panel(found["applied"])
    found["opened again"] = look_at(again)
    if "run_on" in task:
        workflow = Workflow()
        algorithm = workflow.add_task(name=PLUGIN, auto_connect=True)
        algorithm.set_param_object(panel.parameters)
        workflow.run_on(path=task["run_on"])
        found["masks"] = [[mask.description, digest(mask)] for mask in algorithm.get_outputs()[1:]]
    return found


def main():
    application = QApplication([])  # noqa: F841 - Qt needs the reference
    for line in sys.stdin:
        print(json.dumps(perform(json.loads(line))), flush=True)


main()
