"""The settings panel of Ikomia Studio."""

from ikomia import core, dataprocess
from ikomia.utils import pyqtutils, qtconversion
from PyQt6.QtWidgets import QCheckBox, QDoubleSpinBox, QGridLayout, QGroupBox, QLabel, QLineEdit, QSpinBox, QVBoxLayout

from .infer_segment_anything_3_process import InferSegmentAnything3Param
from .sam3_engine.runtime import cuda_present


class InferSegmentAnything3Widget(core.CWorkflowTaskWidget):
    """One field for each parameter; Apply hands them all to the algorithm."""

    def __init__(self, param, parent):
        core.CWorkflowTaskWidget.__init__(self, parent)
        self.parameters = InferSegmentAnything3Param() if param is None else param
        self._readers = {}

        layout = QVBoxLayout()
        layout.addWidget(self._general_section())
        layout.addWidget(self._text_section())
        layout.addWidget(self._geometry_section())
        layout.addStretch()
        self.set_layout(qtconversion.PyQtToQt(layout))
        self._layout = layout  # the C++ side keeps no reference to it

    def on_apply(self):
        """Take over the fields and run the algorithm."""
        self.parameters.set_values({name: read() for name, read in self._readers.items()})
        self.emit_apply(self.parameters)

    def _general_section(self):
        settings, grid = self.parameters.settings, QGridLayout()
        cuda = self._check_box(grid, "cuda", "CUDA", settings.cuda and cuda_present())
        cuda.setEnabled(cuda_present())
        percent = QSpinBox(minimum=1, maximum=100, value=settings.input_size_percent, suffix=" %")
        percent.setToolTip("The image is shrunk to this size before inference; masks keep the size of the image.")
        self._add_row(grid, "input_size_percent", "Input size", percent, lambda: str(percent.value()))
        self._model_input_size(grid)
        weights = pyqtutils.BrowseFileWidget(settings.model_weight_file, "Checkpoint (*.pt *.pth)", "Choose a file")
        weights.setToolTip("A local SAM 3 checkpoint. Empty: the weights of facebook/sam3 on Hugging Face.")
        self._add_row(grid, "model_weight_file", "Model weight file", weights, lambda: weights.qedit_file.text())
        return _section("General settings", grid)

    def _text_section(self):
        settings, grid = self.parameters.settings, QGridLayout()
        self._edit(grid, "input_text", "Text prompt", settings.input_text, "shoe")
        threshold = QDoubleSpinBox(minimum=0.0, maximum=1.0, singleStep=0.05, decimals=3)
        threshold.setValue(settings.confidence_threshold)
        threshold.setToolTip("Instances that score above it are kept.")
        self._add_row(grid, "confidence_threshold", "Confidence threshold", threshold, lambda: str(threshold.value()))
        return _section("Text", grid)

    def _geometry_section(self):
        settings, grid = self.parameters.settings, QGridLayout()
        self._edit(grid, "input_box", "Box coord. [[xyxy]]", settings.input_box, "[[425, 600, 700, 875]]")
        self._edit(grid, "input_point", "Point coord. [[xy]]", settings.input_point, "[[520, 375]]")
        self._edit(grid, "input_point_label", "Point label [i]", settings.input_point_label, "[1]")
        self._check_box(grid, "multimask_output", "Three candidate masks", settings.multimask_output)
        return _section("Box and point", grid)

    def _model_input_size(self, grid):
        own_size = 98  # what the field holds where the parameter is 0: a step below the smallest size
        side = QSpinBox(minimum=own_size, maximum=2016, singleStep=14, specialValueText="as trained", suffix=" px")
        side.setValue(self.parameters.settings.model_input_size)
        side.setToolTip(
            "Side of the square image that the network sees. A smaller one is faster and shows it less detail. "
            "SAM 3 was trained at 1008."
        )

        def read():
            return "0" if side.value() == own_size else str(max(112, side.value()))

        self._add_row(grid, "model_input_size", "Model input size", side, read)

    def _edit(self, grid, name, label, value, example):
        edit = QLineEdit(value, placeholderText=example)
        edit.setToolTip(f"For example {example}")
        self._add_row(grid, name, label, edit, edit.text)

    def _check_box(self, grid, name, label, checked):
        box = QCheckBox(checked=checked)
        self._add_row(grid, name, label, box, lambda: str(box.isChecked()))
        return box

    def _add_row(self, grid, name, label, field, read):
        row = grid.rowCount()
        grid.addWidget(QLabel(label), row, 0)
        grid.addWidget(field, row, 1)
        field.setObjectName(name)
        self._readers[name] = read


def _section(title, grid):
    section = QGroupBox(title)
    section.setLayout(grid)
    return section


class InferSegmentAnything3WidgetFactory(dataprocess.CWidgetFactory):
    """Creates the settings panel."""

    def __init__(self):
        dataprocess.CWidgetFactory.__init__(self)
        self.name = "infer_segment_anything_3"

    def create(self, param):
        """A panel that shows and edits ``param``."""
        return InferSegmentAnything3Widget(param, None)
