"""The settings panel of Ikomia Studio."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Sequence

from ikomia import core, dataprocess
from ikomia.utils import qtconversion
from PyQt6.QtGui import QWheelEvent
from PyQt6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .infer_segment_anything_3_process import InferSegmentAnything3Param
from .sam3_engine.devices import cuda_present
from .sam3_engine.prompt_strings import PromptStrings
from .sam3_engine.settings import MASK_OUTPUTS
from .sam3_engine.weights import OFFICIAL_NAMES, SUFFIXES, without_quotes

_PROMPT_HELP = {
    "input_text": (
        "What to find: a noun phrase or a list of noun phrases. Every instance is segmented.\n"
        'For example: shoe, or: ["shoe", "person"], or with thresholds: {"shoe": 0.3, "person": 0.6}\n'
        "If you set a text prompt, points are ignored, and boxes are used only as labeled examples."
    ),
    "input_box": (
        "Boxes around objects: left, top, right and bottom in image pixels. Each box gives one mask.\n"
        "For example: [[425, 600, 700, 875]]\n"
        "If you leave boxes and points empty, the points and rectangles drawn on the image are used."
    ),
    "input_box_label": (
        "Turns boxes and drawn rectangles into examples: everything that looks like them is segmented.\n"
        "One label per box: 1 for a positive example, 0 for a negative one.\n"
        "For example: [1], or: [1, 0]\n"
        "Empty: each box segments the object in it."
    ),
    "input_point": (
        "Points that describe one object, x and y in image pixels. If there is one box, the points refine it.\n"
        "For example: [[520, 375]], or: [[500, 375], [1125, 625]]"
    ),
    "input_point_label": (
        "One label per point: 1 for the object, 0 for the background.\n"
        "For example: [1], or: [1, 0]\n"
        "Empty: all points are on the object."
    ),
}
_EXAMPLE_PATH = r"C:\Users\me\sam3.pt" if sys.platform == "win32" else "/home/me/sam3.pt"
_WEIGHT_FILES = f"Weights ({' '.join(f'*{suffix}' for suffix in SUFFIXES)});;All files (*)"
_MALFORMED = "QLineEdit { border: 1px solid red; border-radius: 2px; padding: 2px; }"


class _Choices(QComboBox):
    """A list of choices that the mouse wheel leaves as it is."""

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Scroll what contains the field."""
        event.ignore()


class _TextWithChoices(_Choices):
    """A text field with a list of choices. Its text is exactly what was given, typed or chosen."""

    def __init__(self, choices: Sequence[str], text: str) -> None:
        super().__init__(editable=True, insertPolicy=QComboBox.InsertPolicy.NoInsert)
        self.setCompleter(None)
        self.addItems(choices)
        self.setCurrentIndex(self.findText(text))
        self.setEditText(text)


class InferSegmentAnything3Widget(core.CWorkflowTaskWidget):
    """One field per parameter; Apply passes them all to the algorithm."""

    def __init__(self, param: InferSegmentAnything3Param | None, parent: QWidget | None) -> None:
        core.CWorkflowTaskWidget.__init__(self, parent)
        self.parameters = InferSegmentAnything3Param() if param is None else param
        self._captions: list[QLabel] = []
        self._readers: dict[str, Callable[[], str]] = {}
        self._prompt_edits: dict[str, QLineEdit] = {}

        layout = QVBoxLayout()
        sections = {
            "General settings": self._general_fields(),
            "Text": self._text_fields(),
            "Box and point": self._geometry_fields(),
        }
        for title, grid in sections.items():
            section = QGroupBox(title)
            section.setLayout(grid)
            layout.addWidget(section)
        layout.addStretch()
        widest = max(caption.sizeHint().width() for caption in self._captions)
        for grid in sections.values():
            grid.setColumnMinimumWidth(0, widest)
        self.set_layout(qtconversion.PyQtToQt(layout))
        self._layout = layout  # the C++ side keeps no reference to it

        self._shown = self._read()
        self._mark_malformed_prompts()

    def on_apply(self) -> None:
        """Set the parameters that were changed, and run the algorithm.

        Parameters that were not changed keep their stored values, even where the panel can only show something close.
        """
        typed = self._read()
        self.parameters.set_values({name: text for name, text in typed.items() if text != self._shown[name]})
        self._shown = typed
        self.emit_apply(self.parameters)

    def _read(self) -> dict[str, str]:
        """Return the parameters that the panel shows, names to strings."""
        return {name: read() for name, read in self._readers.items()}

    def _general_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        cuda = self._check_box(grid, "cuda", "CUDA", settings.cuda and cuda_present(), "Run on the GPU.")
        if not cuda_present():
            cuda.setEnabled(False)
            cuda.setToolTip(_tooltip("No GPU with CUDA was found. The CPU is used."))
        percent = QSpinBox(minimum=1, maximum=100, value=settings.input_size_percent, suffix=" %")
        self._add_row(
            grid,
            "input_size_percent",
            "Input size",
            percent,
            lambda: str(percent.value()),
            "Shrinks the image to this percentage before it is segmented. Masks keep the original size, and\n"
            "coordinates always refer to the original image.",
        )
        self._model_input_size(grid)
        self._model_weight_file(grid)
        self._share(
            grid,
            "min_region_percent",
            "Minimum region",
            settings.min_region_percent,
            "Removes stray pixels: drops parts of a mask that are smaller than this percentage of its area, and fills\n"
            "holes that are smaller. The largest part always stays. 0 changes nothing.",
        )
        self._check_box(
            grid,
            "instance_output",
            "Output objects",
            settings.instance_output,
            "Adds an output with the label, score, box and mask of each object. These masks may overlap.",
        )
        return grid

    def _text_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        self._prompt_edit(grid, "input_text", "Text prompt", settings.input_text, "shoe")
        threshold = self._fraction(settings.confidence_threshold)
        self._add_row(
            grid,
            "confidence_threshold",
            "Confidence threshold",
            threshold,
            lambda: str(threshold.value()),
            "0 to 1, for text and example boxes: keeps instances with a score above this.\n"
            "A lower threshold finds more, a higher one makes fewer mistakes. Changing it is fast.",
        )
        overlap = self._fraction(settings.iou_threshold)
        self._add_row(
            grid,
            "iou_threshold",
            "IoU threshold",
            overlap,
            lambda: str(overlap.value()),
            "0 to 1, for text and example boxes: if two masks overlap more than this, keeps only the one with the\n"
            "higher score. 1 keeps all; 0.7 removes duplicates. IoU: intersection over union of the two masks.",
        )
        most = QSpinBox(minimum=0, maximum=1_000_000, value=settings.max_detections, specialValueText="all")
        self._add_row(
            grid,
            "max_detections",
            "Most instances",
            most,
            lambda: str(most.value()),
            "For text and example boxes: keeps the instances with the highest scores, at most this many. 0 keeps all.",
        )
        self._share(
            grid,
            "min_area_percent",
            "Smallest area",
            settings.min_area_percent,
            "For text and example boxes: drops instances that cover less than this percentage of the image.",
        )
        self._share(
            grid,
            "max_area_percent",
            "Largest area",
            settings.max_area_percent,
            "For text and example boxes: drops instances that cover more than this percentage of the image.",
        )
        numbered = _Choices()
        numbered.addItems(MASK_OUTPUTS)
        numbered.setCurrentText(settings.mask_output)
        self._add_row(
            grid,
            "mask_output",
            "Mask numbers",
            numbered,
            numbered.currentText,
            "For text and example boxes: what the pixel values of the mask number.\n"
            "instances: every instance has its own value. classes: all instances of a phrase have the same.",
        )
        return grid

    def _geometry_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        self._prompt_edit(grid, "input_box", "Box coord. [[xyxy]]", settings.input_box, "[[425, 600, 700, 875]]")
        self._prompt_edit(grid, "input_box_label", "Box label [i]", settings.input_box_label, "[1]")
        self._prompt_edit(grid, "input_point", "Point coord. [[xy]]", settings.input_point, "[[520, 375]]")
        self._prompt_edit(grid, "input_point_label", "Point label [i]", settings.input_point_label, "[1]")
        self._check_box(
            grid,
            "multimask_output",
            "Three candidate masks",
            settings.multimask_output,
            "Outputs three masks per object instead of one, best first. For points and boxes only.\n"
            "Useful for ambiguous prompts, such as a single point.",
        )
        return grid

    def _model_input_size(self, grid: QGridLayout) -> None:
        own_size = 98  # stands for the parameter's 0: one step below the smallest size
        side = QSpinBox(minimum=own_size, maximum=2016, singleStep=14, specialValueText="as trained", suffix=" px")
        side.setValue(self.parameters.settings.model_input_size)

        def read() -> str:
            return "0" if side.value() == own_size else str(max(112, side.value()))

        self._add_row(
            grid,
            "model_input_size",
            "Model input size",
            side,
            read,
            "Side of the square image that the network sees, 112 to 2016 pixels. SAM 3 was trained at 1008.\n"
            "A smaller size is faster but loses detail.",
        )

    def _model_weight_file(self, grid: QGridLayout) -> None:
        field = _TextWithChoices(OFFICIAL_NAMES, self.parameters.settings.model_weight_file)
        field.lineEdit().setPlaceholderText("facebook/sam3")
        browse = QPushButton("Browse...")
        row = QHBoxLayout()
        row.addWidget(field, 1)
        row.addWidget(browse)
        self._add_row(
            grid,
            "model_weight_file",
            "Model weight file",
            field,
            field.currentText,
            "Path of a SAM 3 or SAM 3.1 checkpoint, or its name on Hugging Face.\n"
            f"For example: {_EXAMPLE_PATH}, or: facebook/sam3.1, or: owner/repository/model.safetensors\n"
            "Files on Hugging Face are downloaded once. facebook/sam3 and facebook/sam3.1 need access from Meta.\n"
            "Empty: weights/sam3.pt in the plugin's folder if it exists, else facebook/sam3.",
            row,
        )

        def choose_file() -> None:
            shown = without_quotes(field.currentText())
            start = shown if os.path.lexists(shown) else ""
            chosen, _ = QFileDialog.getOpenFileName(field, "Model weight file", start, _WEIGHT_FILES)
            if chosen:  # not canceled
                field.setEditText(chosen)

        browse.clicked.connect(choose_file)

    def _share(self, grid: QGridLayout, name: str, label: str, value: float, help_text: str) -> None:
        field = QDoubleSpinBox(minimum=0.0, maximum=100.0, singleStep=0.5, decimals=2, suffix=" %")
        field.setValue(value)
        self._add_row(grid, name, label, field, lambda: str(field.value()), help_text)

    def _fraction(self, value: float) -> QDoubleSpinBox:
        field = QDoubleSpinBox(minimum=0.0, maximum=1.0, singleStep=0.05, decimals=3)
        field.setValue(value)
        return field

    def _prompt_edit(self, grid: QGridLayout, name: str, label: str, value: str, example: str) -> None:
        edit = QLineEdit(value, placeholderText=f"e.g. {example}")
        self._add_row(grid, name, label, edit, edit.text, _PROMPT_HELP[name])
        self._prompt_edits[name] = edit
        edit.textChanged.connect(self._mark_malformed_prompts)

    def _mark_malformed_prompts(self) -> None:
        """Mark fields that would cause an error with a red border, and explain the error in their tooltip."""
        errors = PromptStrings(**{name: edit.text() for name, edit in self._prompt_edits.items()}).errors()
        for name, edit in self._prompt_edits.items():
            edit.setStyleSheet(_MALFORMED if name in errors else "")
            edit.setToolTip(_tooltip(errors.get(name, _PROMPT_HELP[name])))

    def _check_box(self, grid: QGridLayout, name: str, label: str, checked: bool, help_text: str) -> QCheckBox:
        box = QCheckBox(checked=checked)
        self._add_row(grid, name, label, box, lambda: str(box.isChecked()), help_text)
        return box

    def _add_row(
        self,
        grid: QGridLayout,
        name: str,
        label: str,
        field: QWidget,
        read: Callable[[], str],
        help_text: str,
        row_layout: QHBoxLayout | None = None,
    ) -> None:
        row, caption = grid.rowCount(), QLabel(label)
        caption.setBuddy(field)
        for widget in (caption, field):
            widget.setToolTip(_tooltip(help_text))
        field.setObjectName(name)
        grid.addWidget(caption, row, 0)
        if row_layout is None:
            grid.addWidget(field, row, 1)
        else:
            grid.addLayout(row_layout, row, 1)
        self._captions.append(caption)
        self._readers[name] = read


def _tooltip(text: str) -> str:
    """Return the text of a tooltip as HTML: Qt wraps only that."""
    return f"<p>{html.escape(text)}</p>".replace("\n", "<br>")


class InferSegmentAnything3WidgetFactory(dataprocess.CWidgetFactory):
    """Creates the settings panel."""

    def __init__(self) -> None:
        dataprocess.CWidgetFactory.__init__(self)
        self.name = "infer_segment_anything_3"

    def create(self, param: InferSegmentAnything3Param | None) -> InferSegmentAnything3Widget:
        """Return a panel that shows and edits ``param``."""
        return InferSegmentAnything3Widget(param, None)
