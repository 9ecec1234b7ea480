"""Input fields of the settings panel: what Qt's own fields do not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PyQt6.QtCore import QEvent, QObject, Qt
from PyQt6.QtGui import QKeyEvent
from PyQt6.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QDoubleSpinBox,
    QLayout,
    QLineEdit,
    QSpinBox,
    QToolButton,
    QWidget,
)

from .sam3_engine.options import SMALLEST_TILE

_SMALLEST_INPUT, _LARGEST_INPUT, _PATCH = 112, 2016, 14  # pixels


class TextWithChoices(QComboBox):
    """A text field with a list of choices. Its text is exactly what was given, typed or chosen."""

    def __init__(self, choices: Sequence[str], text: str) -> None:
        super().__init__(editable=True, insertPolicy=QComboBox.InsertPolicy.NoInsert)
        self.setCompleter(None)
        self.addItems(choices)
        self.setCurrentIndex(self.findText(text))
        self.setEditText(text)


class InputSize(QSpinBox):
    """The side of the network's input: 0, or 112 to 2016 pixels in steps of 14."""

    def __init__(self, size: int) -> None:
        super().__init__(minimum=0, maximum=_LARGEST_INPUT, specialValueText="as trained", suffix=" px")
        self.setValue(size)

    def valueFromText(self, text: str | None) -> int:  # noqa: N802
        """Return the size that is used for what was typed: a multiple of 14, at least 112, or 0."""
        typed: int = super().valueFromText(text)
        if typed == self.value():
            return typed  # not typed, but given: it stays
        return max(_SMALLEST_INPUT, _PATCH * round(typed / _PATCH)) if typed else 0

    def stepBy(self, steps: int) -> None:  # noqa: N802
        """Go to the next multiple of 14; 0 is next to 112."""
        positions = max(0, self.value() // _PATCH - _SMALLEST_INPUT // _PATCH + 1) + steps
        self.setValue(_SMALLEST_INPUT + _PATCH * (positions - 1) if positions > 0 else 0)


class TileSize(QSpinBox):
    """The side of tiles in pixels: 0, or 64 and more, in steps of 112."""

    def __init__(self, size: int) -> None:
        super().__init__(minimum=0, maximum=100_000, specialValueText="no tiles", suffix=" px", singleStep=112)
        self.setValue(size)

    def valueFromText(self, text: str | None) -> int:  # noqa: N802
        """Return the size that is used for what was typed."""
        typed: int = super().valueFromText(text)
        return max(SMALLEST_TILE, typed) if typed else 0


class Fraction(QDoubleSpinBox):
    """A number from 0 to 1, or to a smaller limit."""

    def __init__(self, value: float, maximum: float = 1.0) -> None:
        super().__init__(minimum=0.0, maximum=maximum, singleStep=0.05, decimals=3)
        self.setValue(value)


class Percentage(QDoubleSpinBox):
    """A percentage from 0 to 100."""

    def __init__(self, value: float) -> None:
        super().__init__(minimum=0.0, maximum=100.0, singleStep=0.5, decimals=2, suffix=" %")
        self.setValue(value)


class Fold(QToolButton):
    """A heading that shows and hides what is below it.

    Attributes:
        body: what it shows and hides; place it below the heading.
    """

    def __init__(self, title: str, layout: QLayout, unfolded: bool) -> None:
        super().__init__(text=title, checkable=True)
        self.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.setStyleSheet("QToolButton { border: none; background: none; }")  # a heading, not a button that is pressed
        self.body = QWidget()
        self.body.setLayout(layout)
        self.toggled.connect(self._show)
        self.setChecked(unfolded)
        self._show(unfolded)

    def _show(self, unfolded: bool) -> None:
        self.setArrowType(Qt.ArrowType.DownArrow if unfolded else Qt.ArrowType.RightArrow)
        self.body.setVisible(unfolded)


class Habits(QObject):
    """What the fields of a form have in common.

    The Return key submits the form. The mouse wheel scrolls the form: it changes only a number that has the focus. A
    click into a word that stands for a number selects it, so that you can type a number instead.
    """

    def __init__(self, submit: Callable[[], None]) -> None:
        super().__init__()
        self._submit = submit

    def give_to(self, field: QWidget) -> None:
        """Make a field behave like this."""
        field.setFocusPolicy(Qt.FocusPolicy.StrongFocus)  # a spin box would take the focus when the wheel turns
        field.installEventFilter(self)
        if isinstance(field, QAbstractSpinBox):
            field.lineEdit().installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802
        """Handle the events that the fields would handle otherwise."""
        assert event is not None
        kind = event.type()
        if kind == QEvent.Type.MouseButtonRelease and isinstance(watched, QLineEdit):
            number = watched.parent()
            if isinstance(number, QAbstractSpinBox) and number.text() == number.specialValueText():
                watched.selectAll()
        elif kind == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                if isinstance(watched, QAbstractSpinBox):
                    watched.interpretText()
                self._submit()
                return True
        elif kind == QEvent.Type.Wheel and not (isinstance(watched, QAbstractSpinBox) and watched.hasFocus()):
            event.ignore()  # so that it scrolls what contains the field
            return True
        return False
