"""The settings panel of Ikomia Studio."""

import html

from ikomia import core, dataprocess
from ikomia.utils import qtconversion
from PyQt6.QtWidgets import (
    QCheckBox,
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
)

from .infer_segment_anything_3_process import InferSegmentAnything3Param
from .sam3_engine.prompts import prompt_errors
from .sam3_engine.runtime import cuda_present

_PROMPT_HELP = {
    "input_text": (
        "What to look for, as a noun phrase, or several: every instance is segmented.\n"
        'For example: shoe, or: yellow school bus, or: ["shoe", "person"]\n'
        "If it is set, points are not used, and boxes only if they are labelled as examples."
    ),
    "input_box": (
        "Boxes around objects: left, top, right and bottom, in pixels of the image. Each gives a mask.\n"
        "For example: [[425, 600, 700, 875]]\n"
        "If boxes and points are empty, what is drawn on the image is used."
    ),
    "input_box_label": (
        "Makes examples of the boxes, or of drawn rectangles: all that is like them is segmented.\n"
        "For each box: 1 if it shows what to find, 0 if it shows what not to find.\n"
        "For example: [1], or: [1, 0]\n"
        "Empty: each box outlines one object."
    ),
    "input_point": (
        "Points on one object, x and y in pixels of the image; with a single box they refine it.\n"
        "For example: [[520, 375]], or: [[500, 375], [1125, 625]]"
    ),
    "input_point_label": (
        "For each point: 1 if it is on the object, 0 if it is on the background.\n"
        "For example: [1], or: [1, 0]\n"
        "Empty: all points are on the object."
    ),
}
_MALFORMED = "QLineEdit { border: 1px solid red; border-radius: 2px; padding: 2px; }"


class InferSegmentAnything3Widget(core.CWorkflowTaskWidget):
    """One field for each parameter; Apply hands them all to the algorithm."""

    def __init__(self, param, parent):
        core.CWorkflowTaskWidget.__init__(self, parent)
        self.parameters = InferSegmentAnything3Param() if param is None else param
        self._captions = []
        self._readers = {}
        self._prompt_edits = {}

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

    def on_apply(self):
        """Take over what was changed and run the algorithm.

        What was not stays as it is stored, even where the panel can only show something close to it.
        """
        typed = self._read()
        self.parameters.set_values({name: text for name, text in typed.items() if text != self._shown[name]})
        self._shown = typed
        self.emit_apply(self.parameters)

    def _read(self):
        """The parameters that the panel shows, names to strings."""
        return {name: read() for name, read in self._readers.items()}

    def _general_fields(self):
        settings, grid = self.parameters.settings, QGridLayout()
        cuda = self._check_box(grid, "cuda", "CUDA", settings.cuda and cuda_present(), "Run on the GPU.")
        if not cuda_present():
            cuda.setEnabled(False)
            cuda.setToolTip(_tooltip("No GPU with CUDA was found, so the CPU is used."))
        percent = QSpinBox(minimum=1, maximum=100, value=settings.input_size_percent, suffix=" %")
        self._add_row(
            grid,
            "input_size_percent",
            "Input size",
            percent,
            lambda: str(percent.value()),
            "The image is shrunk to this before it is segmented. Masks keep the image's size, and coordinates are\n"
            "always those of the whole image.",
        )
        self._model_input_size(grid)
        self._model_weight_file(grid)
        self._check_box(
            grid,
            "instance_output",
            "Objects as output",
            settings.instance_output,
            "One more output, with each object's label, score, box and mask. Overlaps are kept there.",
        )
        return grid

    def _text_fields(self):
        settings, grid = self.parameters.settings, QGridLayout()
        self._prompt_edit(grid, "input_text", "Text prompt", settings.input_text, "shoe")
        threshold = self._fraction(settings.confidence_threshold)
        self._add_row(
            grid,
            "confidence_threshold",
            "Confidence threshold",
            threshold,
            lambda: str(threshold.value()),
            "From 0 to 1: instances of a text or of examples that score above it are kept.\n"
            "A lower one finds more, a higher one is surer. Another one takes no time.",
        )
        overlap = self._fraction(settings.iou_threshold)
        self._add_row(
            grid,
            "iou_threshold",
            "IoU threshold",
            overlap,
            lambda: str(overlap.value()),
            "From 0 to 1: of two instances whose masks overlap more than this, only the better one is kept.\n"
            "1 keeps all, 0.7 drops what was found twice. IoU: the area that both share, over the area of both.",
        )
        return grid

    def _geometry_fields(self):
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
            "Three masks for each object instead of one, the best first.\n"
            "For what can mean more than one thing, such as a single point.",
        )
        return grid

    def _model_input_size(self, grid):
        own_size = 98  # what the field holds where the parameter is 0: a step below the smallest size
        side = QSpinBox(minimum=own_size, maximum=2016, singleStep=14, specialValueText="as trained", suffix=" px")
        side.setValue(self.parameters.settings.model_input_size)

        def read():
            return "0" if side.value() == own_size else str(max(112, side.value()))

        self._add_row(
            grid,
            "model_input_size",
            "Model input size",
            side,
            read,
            "Side of the square image that the network itself sees, 112 to 2016 pixels. SAM 3 was trained at 1008.\n"
            "A smaller one is faster and shows it less detail.",
        )

    def _model_weight_file(self, grid):
        edit = QLineEdit(self.parameters.settings.model_weight_file, placeholderText="facebook/sam3")
        browse = QPushButton("Browse...")
        row = QHBoxLayout()
        row.addWidget(edit)
        row.addWidget(browse)
        self._add_row(
            grid,
            "model_weight_file",
            "Model weight file",
            edit,
            edit.text,
            "A SAM 3 checkpoint on this machine, for example: /home/me/sam3.pt\n"
            "Empty: the weights of facebook/sam3, which Hugging Face gives to those whom Meta has given access.",
            row,
        )

        def choose_file():
            chosen, _ = QFileDialog.getOpenFileName(
                edit, "Model weight file", edit.text(), "Checkpoint (*.pt *.pth);;All files (*)"
            )
            if chosen:  # not cancelled
                edit.setText(chosen)

        browse.clicked.connect(choose_file)

    def _fraction(self, value):
        field = QDoubleSpinBox(minimum=0.0, maximum=1.0, singleStep=0.05, decimals=3)
        field.setValue(value)
        return field

    def _prompt_edit(self, grid, name, label, value, example):
        edit = QLineEdit(value, placeholderText=f"e.g. {example}")
        self._add_row(grid, name, label, edit, edit.text, _PROMPT_HELP[name])
        self._prompt_edits[name] = edit
        edit.textChanged.connect(self._mark_malformed_prompts)

    def _mark_malformed_prompts(self):
        """Border in red what would be an error in a run, and say in its tooltip what is wrong with it."""
        errors = prompt_errors(**{name: edit.text() for name, edit in self._prompt_edits.items()})
        for name, edit in self._prompt_edits.items():
            edit.setStyleSheet(_MALFORMED if name in errors else "")
            edit.setToolTip(_tooltip(errors.get(name, _PROMPT_HELP[name])))

    def _check_box(self, grid, name, label, checked, help_text):
        box = QCheckBox(checked=checked)
        self._add_row(grid, name, label, box, lambda: str(box.isChecked()), help_text)
        return box

    def _add_row(self, grid, name, label, field, read, help_text, row_layout=None):
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


def _tooltip(text):
    """Text of a tooltip, as HTML since Qt breaks only that into lines."""
    return f"<p>{html.escape(text)}</p>".replace("\n", "<br>")


class InferSegmentAnything3WidgetFactory(dataprocess.CWidgetFactory):
    """Creates the settings panel."""

    def __init__(self):
        dataprocess.CWidgetFactory.__init__(self)
        self.name = "infer_segment_anything_3"

    def create(self, param):
        """A panel that shows and edits ``param``."""
        return InferSegmentAnything3Widget(param, None)
