"""The settings panel of Ikomia Studio."""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable

from ikomia import core, dataprocess
from ikomia.utils import qtconversion
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QGroupBox,
    QLabel,
    QLineEdit,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .infer_segment_anything_3_fields import Fold, Fraction, Habits, InputSize, Percentage, TextWithChoices, TileSize
from .infer_segment_anything_3_process import InferSegmentAnything3Param
from .sam3_engine.devices import cuda_present
from .sam3_engine.options import LARGEST_OVERLAP
from .sam3_engine.prompts import MOST_POINTS_PER_SIDE
from .sam3_engine.settings import MASK_OUTPUTS, Settings
from .sam3_engine.weights import OFFICIAL_NAMES, SUFFIXES, without_quotes

_EXAMPLE_PATH = r"C:\Users\me\sam3.pt" if sys.platform == "win32" else "/home/me/sam3.pt"
_WEIGHT_FILES = f"Weights ({' '.join(f'*{suffix}' for suffix in SUFFIXES)});;All files (*)"
_HELP = {
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
    "points_per_side": (
        "Segments everything if there is no other prompt: whatever is at each point of a grid over the image.\n"
        "The number of points on each side of the grid, up to 64. For example: 32. More points find smaller things,\n"
        "and take longer. 0: off."
    ),
    "confidence_threshold": (
        "0 to 1, for text and example boxes: keeps instances with a score above this.\n"
        "A lower threshold finds more, a higher one makes fewer mistakes. Changing it is fast."
    ),
    "multimask_output": (
        "Outputs three masks per object instead of one, best first. For points and boxes only.\n"
        "Useful for ambiguous prompts, such as a single point."
    ),
    "instance_output": "Adds an output with the label, score, box and mask of each object. These masks may overlap.",
    "model_weight_file": (
        "Path of a SAM 3 or SAM 3.1 checkpoint, or its name on Hugging Face.\n"
        f"For example: {_EXAMPLE_PATH}, or: facebook/sam3.1, or: owner/repository/model.safetensors\n"
        "Files on Hugging Face are downloaded once. facebook/sam3 and facebook/sam3.1 need access from Meta.\n"
        "Empty: weights/sam3.pt in the plugin's folder if it exists, else facebook/sam3."
    ),
    "cuda": "Run on the GPU.",
    "iou_threshold": (
        "0 to 1, not for points and boxes: if two masks overlap more than this, keeps only the one with the higher\n"
        "score. 1 keeps all; 0.7 removes duplicates. IoU: intersection over union of the two masks."
    ),
    "max_detections": (
        "Not for points and boxes: keeps the instances with the highest scores, at most this many. 0 keeps all."
    ),
    "min_area_percent": "Not for points and boxes: drops instances that cover less than this percentage of the image.",
    "max_area_percent": "Not for points and boxes: drops instances that cover more than this percentage of the image.",
    "predicted_iou_threshold": (
        "0 to 1, to segment everything: drops masks whose quality (IoU) the network itself estimates to be lower."
    ),
    "stability_score_threshold": (
        "0 to 1, to segment everything: drops masks whose edge is uncertain: that change more than this when the\n"
        "network's output is cut off a little higher or lower."
    ),
    "tile_size": (
        "For small things in large images: side of square tiles in pixels, 64 or more. Text, example boxes and\n"
        "everything are looked for in each tile and in the whole image; points and boxes are segmented in a window\n"
        "of this size.\n"
        "Slower: each tile takes as long as an image. 0 uses no tiles."
    ),
    "tile_overlap": (
        "0 to 0.9, not for points and boxes: the least share of a tile that it has in common with the next."
    ),
    "min_region_percent": (
        "Removes stray pixels: drops parts of a mask that are smaller than this percentage of its area, and fills\n"
        "holes that are smaller. The largest part always stays. 0 changes nothing."
    ),
    "mask_output": (
        "Not for points and boxes: what the pixel values of the mask number.\n"
        "instances: every instance has its own value. classes: all instances of a phrase have the same."
    ),
    "input_size_percent": (
        "Shrinks the image to this percentage before it is segmented. Masks keep the original size, and\n"
        "coordinates always refer to the original image."
    ),
    "model_input_size": (
        "Side of the square image that the network sees, 112 to 2016 pixels. SAM 3 was trained at 1008.\n"
        "A smaller size is faster but loses detail. 0: as trained."
    ),
    "embedding_cache_folder": (
        "A folder in which encoded images are kept, so that another process need not encode the same image again:\n"
        "up to 4 GB, the least recently used go first. For example: /home/me/.cache/sam3. Empty: none are kept."
    ),
}
_NO_GPU = "No GPU with CUDA was found. The CPU is used."
_MALFORMED = "QLineEdit { border: 1px solid red; border-radius: 2px; padding: 2px; }"
_RED_ON_LIGHT, _RED_ON_DARK = "#b3261e", "#ff8a80"


class InferSegmentAnything3Widget(core.CWorkflowTaskWidget):
    """One field per parameter; Apply, or the Return key, passes them all to the algorithm.

    What a run would refuse or ignore is explained below the field.
    """

    def __init__(self, param: InferSegmentAnything3Param | None, parent: QWidget | None) -> None:
        core.CWorkflowTaskWidget.__init__(self, parent)
        self.parameters = InferSegmentAnything3Param() if param is None else param
        self._captions: list[QLabel] = []
        self._fields: dict[str, QWidget] = {}
        self._readers: dict[str, Callable[[], str]] = {}
        self._messages: dict[str, QLabel] = {}
        self._habits = Habits(self.on_apply)

        layout = QVBoxLayout()
        sections = {
            "Prompt": self._prompt_fields(),
            "Results": self._result_fields(),
            "Model": self._model_fields(),
        }
        for title, grid in sections.items():
            section = QGroupBox(title)
            section.setLayout(grid)
            layout.addWidget(section)
        advanced = self._advanced_fields()
        fold = Fold("Advanced", advanced, unfolded=self._is_used(advanced))
        layout.addWidget(fold)
        layout.addWidget(fold.body)
        layout.addStretch()
        widest = max(caption.sizeHint().width() for caption in self._captions)
        for grid in (*sections.values(), advanced):
            grid.setColumnMinimumWidth(0, widest)
            grid.setColumnStretch(1, 1)
        self.set_layout(qtconversion.PyQtToQt(layout))
        self._layout = layout  # the C++ side keeps no reference to it

        self._shown = self._read()
        self._show_messages()

    def on_apply(self) -> None:
        """Set the parameters that were changed, and run the algorithm.

        Parameters that were not changed keep their stored values, even where the panel can only show something close.
        """
        typed = self._read()
        self.parameters.set_values({name: text for name, text in typed.items() if text != self._shown[name]})
        self._shown = typed
        self._show_messages()
        self.emit_apply(self.parameters)

    def _read(self) -> dict[str, str]:
        """Return the parameters that the panel shows, names to strings."""
        return {name: read() for name, read in self._readers.items()}

    def _is_used(self, grid: QGridLayout) -> bool:
        """Return whether a parameter in a grid does not have its default."""
        settings, defaults = self.parameters.settings, Settings()
        return any(
            getattr(settings, name) != getattr(defaults, name)
            for name, field in self._fields.items()
            if grid.indexOf(field) >= 0
        )

    def _prompt_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        for name, label, value, example in (
            ("input_text", "Text prompt", settings.input_text, "shoe"),
            ("input_box", "Box coord. [[xyxy]]", settings.input_box, "[[425, 600, 700, 875]]"),
            ("input_box_label", "Box label [i]", settings.input_box_label, "[1]"),
            ("input_point", "Point coord. [[xy]]", settings.input_point, "[[520, 375]]"),
            ("input_point_label", "Point label [i]", settings.input_point_label, "[1]"),
        ):
            edit = QLineEdit(value, placeholderText=f"e.g. {example}")
            edit.home(False)  # show the beginning of a long text
            self._add_row(grid, name, label, edit, edit.text)
            edit.textChanged.connect(self._show_messages)
        side = QSpinBox(
            minimum=0,
            maximum=MOST_POINTS_PER_SIDE,
            value=settings.points_per_side,
            specialValueText="off",
            suffix=" points a side",
        )
        self._add_number(grid, "points_per_side", "Segment everything", side)
        side.valueChanged.connect(self._show_messages)
        return grid

    def _result_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        threshold = Fraction(settings.confidence_threshold)
        self._add_number(grid, "confidence_threshold", "Confidence threshold", threshold)
        self._add_check_box(grid, "multimask_output", "Three candidates", settings.multimask_output)
        self._add_check_box(grid, "instance_output", "Output objects", settings.instance_output)
        return grid

    def _model_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        self._add_weight_file(grid)
        cuda = self._add_check_box(grid, "cuda", "CUDA", settings.cuda and cuda_present())
        if not cuda_present():
            cuda.setEnabled(False)
            cuda.setToolTip(_tooltip(_NO_GPU))
        return grid

    def _advanced_fields(self) -> QGridLayout:
        settings, grid = self.parameters.settings, QGridLayout()
        self._add_number(grid, "iou_threshold", "IoU threshold", Fraction(settings.iou_threshold))
        most = QSpinBox(minimum=0, maximum=1_000_000, value=settings.max_detections, specialValueText="all")
        self._add_number(grid, "max_detections", "Most instances", most)
        for name, label, value in (
            ("min_area_percent", "Smallest area", settings.min_area_percent),
            ("max_area_percent", "Largest area", settings.max_area_percent),
            ("min_region_percent", "Minimum region", settings.min_region_percent),
        ):
            field = Percentage(value)
            self._add_number(grid, name, label, field)
            field.valueChanged.connect(self._show_messages)
        for name, label, share in (
            ("predicted_iou_threshold", "Predicted IoU", settings.predicted_iou_threshold),
            ("stability_score_threshold", "Stability score", settings.stability_score_threshold),
        ):
            self._add_number(grid, name, label, Fraction(share))
        numbered = QComboBox()
        numbered.addItems(MASK_OUTPUTS)
        numbered.setCurrentText(settings.mask_output)
        self._add_row(grid, "mask_output", "Mask numbers", numbered, numbered.currentText)
        self._add_number(grid, "tile_size", "Tile size", TileSize(settings.tile_size))
        overlap = Fraction(settings.tile_overlap, LARGEST_OVERLAP)
        self._add_number(grid, "tile_overlap", "Tile overlap", overlap)
        percent = QSpinBox(minimum=1, maximum=100, value=settings.input_size_percent, suffix=" %")
        self._add_number(grid, "input_size_percent", "Input size", percent)
        self._add_number(grid, "model_input_size", "Model input size", InputSize(settings.model_input_size))
        folder = QLineEdit(settings.embedding_cache_folder, placeholderText="none")
        folder.home(False)
        self._add_row(grid, "embedding_cache_folder", "Embedding cache", folder, folder.text)
        return grid

    def _add_weight_file(self, grid: QGridLayout) -> None:
        field = TextWithChoices(OFFICIAL_NAMES, self.parameters.settings.model_weight_file)
        field.lineEdit().setPlaceholderText("facebook/sam3")
        # a path is long: it gets a row of its own
        self._add_row(grid, "model_weight_file", "Model weight file", field, field.currentText, whole_row=True)
        browse = QPushButton("Browse...")
        grid.addWidget(browse, grid.rowCount() - 3, 1)

        def choose_file() -> None:
            shown = without_quotes(field.currentText())
            start = shown if os.path.lexists(shown) else ""
            chosen, _ = QFileDialog.getOpenFileName(field, "Model weight file", start, _WEIGHT_FILES)
            if chosen:  # not canceled
                field.setEditText(chosen)
                self._show_messages()

        browse.clicked.connect(choose_file)
        # not at each key: the beginning of a path is rarely a file
        field.lineEdit().editingFinished.connect(self._show_messages)
        field.activated.connect(self._show_messages)

    def _add_check_box(self, grid: QGridLayout, name: str, label: str, checked: bool) -> QCheckBox:
        box = QCheckBox(checked=checked)
        self._add_row(grid, name, label, box, lambda: str(box.isChecked()))
        return box

    def _add_number(self, grid: QGridLayout, name: str, label: str, field: QSpinBox | Fraction | Percentage) -> None:
        field.setKeyboardTracking(False)
        self._add_row(grid, name, label, field, lambda: str(field.value()))

    def _add_row(
        self,
        grid: QGridLayout,
        name: str,
        label: str,
        field: QWidget,
        read: Callable[[], str],
        *,
        whole_row: bool = False,
    ) -> None:
        """Add a caption, its field beside it or, with ``whole_row``, below it, and a place for a message."""
        row, caption = grid.rowCount(), QLabel(label)
        message = QLabel(textFormat=Qt.TextFormat.PlainText, wordWrap=True)
        caption.setBuddy(field)
        for widget in (caption, field):
            widget.setToolTip(_tooltip(_HELP[name]))
        field.setObjectName(name)
        message.setObjectName(f"{name} message")
        self._habits.give_to(field)
        grid.addWidget(caption, row, 0)
        if whole_row:
            grid.addWidget(field, row + 1, 0, 1, 2)
        else:
            grid.addWidget(field, row, 1)
        grid.addWidget(message, grid.rowCount(), 0, 1, 2)
        self._captions.append(caption)
        self._fields[name], self._readers[name], self._messages[name] = field, read, message

    def _show_messages(self) -> None:
        """Explain below its field what a run would refuse, with a red border, or would ignore."""
        settings = self.parameters.settings.updated(self._read())
        errors, notes = settings.errors(), settings.notes()
        is_dark = QApplication.palette().window().color().lightness() < 128
        for name, message in self._messages.items():
            text = errors.get(name) or notes.get(name, "")
            message.setText(text)
            message.setStyleSheet(f"color: {_RED_ON_DARK if is_dark else _RED_ON_LIGHT}" if name in errors else "")
            message.setVisible(bool(text))
            self._fields[name].setStyleSheet(_MALFORMED if name in errors else "")


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
