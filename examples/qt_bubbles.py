"""How a conversation looks in examples/qt_chat.py: a column of bubbles. Nothing here knows of models."""

from PySide6.QtCore import Qt
from PySide6.QtGui import QPalette, QResizeEvent
from PySide6.QtWidgets import QFrame, QLabel, QScrollArea, QVBoxLayout, QWidget

STYLE = """
Bubble { border-radius: 14px }
Bubble[role="user"] { background: palette(highlight) }
Bubble[role="user"] QLabel { color: palette(highlighted-text) }
Bubble[role="assistant"] { background: palette(window) }
Bubble[role="error"] { background: #b3261e }
Bubble[role="error"] QLabel { color: white }
"""  # colours of the palette, so that a dark desktop gets a dark window
PIECE, LONGEST_PIECE = 500, 2000  # characters


class Bubble(QFrame):
    """One message, in pieces that follow each other: new text changes only the last of them, so that drawing the end of
    a long answer takes no longer than that of a short one."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self.setProperty("role", role)
        self._pieces: list[QLabel] = []
        self._column = QVBoxLayout(self, spacing=0)
        self._column.setContentsMargins(14, 9, 14, 9)

    def append(self, text: str, room: int) -> None:
        """`text` at the end; `room` is the width of the window in pixels."""
        if self._pieces:
            text = self._pieces[-1].text() + text
        else:
            self._add_piece()
        cut = text.rfind("\n") if len(text) > PIECE else -1
        if cut < 0 and len(text) > LONGEST_PIECE:
            cut = text.rfind(" ")
        self._set(self._pieces[-1], text[:cut] if cut > 0 else text, room)
        if cut > 0:
            self._add_piece()
            self._set(self._pieces[-1], text[cut + 1 :], room)

    def _add_piece(self) -> None:
        # What a model writes is text, never markup.
        label = QLabel(textFormat=Qt.TextFormat.PlainText, wordWrap=True)
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._pieces.append(label)
        self._column.addWidget(label)

    def _set(self, label: QLabel, text: str, room: int) -> None:
        label.setText(text)
        longest = max(label.fontMetrics().horizontalAdvance(line) for line in text.split("\n"))
        width = min(longest + 6, room * 4 // 5)
        label.setFixedSize(width, max(0, label.heightForWidth(width)))

    def fit(self, room: int) -> None:
        for label in self._pieces:
            self._set(label, label.text(), room)


class Messages(QScrollArea):
    """The column. It follows the newest text, unless somebody has scrolled up to read."""

    def __init__(self) -> None:
        super().__init__(widgetResizable=True, frameShape=QFrame.Shape.NoFrame, styleSheet=STYLE)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._bubbles: list[tuple[str, Bubble]] = []  # with the texts
        self._follow = True
        inside = QWidget()
        inside.setBackgroundRole(QPalette.ColorRole.Base)
        self._column = QVBoxLayout(inside, spacing=10)
        self._column.addStretch()
        self.setWidget(inside)
        self._scroll = self.verticalScrollBar()
        self._scroll.valueChanged.connect(self._scrolled)
        self._scroll.rangeChanged.connect(lambda low, high: self._scroll.setValue(high) if self._follow else None)

    def _scrolled(self, value: int) -> None:
        self._follow = value >= self._scroll.maximum() - 4

    @property
    def texts(self) -> list[str]:
        """What stands in the bubbles."""
        return [text for text, _ in self._bubbles]

    def add(self, role: str, text: str = "") -> None:
        """A new message at the end; `role` is "user", "assistant" or "error"."""
        bubble, side = Bubble(role), Qt.AlignmentFlag.AlignRight if role == "user" else Qt.AlignmentFlag.AlignLeft
        self._bubbles.append(("", bubble))
        self._column.addWidget(bubble, alignment=side)
        self._follow = True
        self.append(text)

    def append(self, text: str) -> None:
        """More text in the last message."""
        said, bubble = self._bubbles[-1]
        self._bubbles[-1] = (said + text, bubble)
        bubble.setVisible(bool(said + text))
        if text:
            bubble.append(text, self.viewport().width())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 (Qt's name)
        super().resizeEvent(event)
        for _, bubble in self._bubbles:
            bubble.fit(self.viewport().width())
