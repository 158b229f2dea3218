"""A chat window in PySide6: text as it comes, a stop button, and a window that never freezes.

`pip install 'edgellm[examples]'`, then `python examples/qt_chat.py [MODEL.gguf]`

Three rules do it. The model works on threads of its own; what they report goes through `dispatch` to the thread of the
window, which alone touches widgets; and text is drawn 30 times a second, not at every token.
"""

import sys
import threading
from functools import partial

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (  # fmt: skip
    QApplication,
    QHBoxLayout,
    QLineEdit,
    QMainWindow,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from qt_bubbles import Messages

import edgellm


class Window(QMainWindow):
    """The window and its conversation."""

    dispatch = Signal(object)  # emitted with a function on any thread: it is called on the window's

    def __init__(self, path: str | None = None) -> None:
        super().__init__(windowTitle="edgellm")
        self.model: edgellm.Model | None = None
        self.session: edgellm.Session | None = None
        self.stream: edgellm.Stream | None = None  # the answer that is being made
        self.said, self.closing = "", False  # text that is not drawn yet; the window is on its way out
        self.dispatch.connect(lambda work: work(), Qt.ConnectionType.QueuedConnection)
        self.lay_out()
        self.drawing = QTimer(self, interval=33, timeout=self.draw)
        self.loader = threading.Thread(target=self.load, args=(path,))
        self.loader.start()

    def lay_out(self) -> None:
        self.messages, self.bar = Messages(), QProgressBar(maximumWidth=160, maximumHeight=12, textVisible=False)
        self.entry = QLineEdit(placeholderText="Loading the model ...", enabled=False, minimumHeight=34)
        self.button = QPushButton("Send", enabled=False, minimumHeight=34)
        line, column, inside = QHBoxLayout(), QVBoxLayout(), QWidget()
        line.addWidget(self.entry)
        line.addWidget(self.button)
        column.addWidget(self.messages)
        column.addLayout(line)
        inside.setLayout(column)
        self.setCentralWidget(inside)
        self.statusBar().addPermanentWidget(self.bar)
        self.resize(640, 520)
        self.entry.returnPressed.connect(self.send)
        self.button.clicked.connect(lambda: self.stream.stop() if self.stream else self.send())

    # ---- on other threads

    def load(self, path: str | None) -> None:
        def progress(done: edgellm.Progress) -> bool:
            self.dispatch.emit(partial(self.show_progress, done))
            return not self.closing  # False ends the loading

        try:
            self.model = edgellm.load(path, progress=progress)
            self.dispatch.emit(self.loaded)
        except edgellm.EdgeLLMError as error:
            self.dispatch.emit(partial(self.failed, error))

    # ---- on the window's thread

    def show_progress(self, progress: edgellm.Progress) -> None:
        self.bar.setVisible(progress.done < progress.total)
        self.bar.setValue(100 * progress.done // max(1, progress.total))

    def loaded(self) -> None:
        # Whole old turns leave a full context window; a model without a chat template has no turns.
        self.session = self.model.session(overflow="drop-turns" if self.model.chat_template else "sink")
        self.setWindowTitle(f"{self.model.name} - edgellm")
        self.ready("Ask something", f"{self.model.name}: {self.model.n_ctx} tokens of context")

    def ready(self, hint: str, status: str) -> None:
        self.drawing.stop()
        self.stream = None
        self.bar.hide()
        self.statusBar().showMessage(status)
        self.button.setText("Send")
        for widget in (self.button, self.entry):
            widget.setEnabled(self.session is not None)
        self.entry.setPlaceholderText(hint)
        self.entry.setFocus()

    def send(self) -> None:
        text = self.entry.text().strip()
        if not text or self.stream is not None:
            return
        self.entry.clear()
        self.messages.add("user", text)
        self.messages.add("assistant")
        try:  # comes back at once
            self.stream = self.session.send(
                text, stream=True, on_token=self.take, on_prefill=self.show_progress, on_done=self.finished,
                dispatch=self.dispatch.emit,
            )  # fmt: skip
        except edgellm.EdgeLLMError as error:
            return self.failed(error)
        self.button.setText("Stop")
        self.drawing.start()

    def take(self, event: edgellm.Event) -> None:
        self.said += event.text

    def draw(self) -> None:
        if self.said:
            self.messages.append(self.said)
            self.said = ""

    def finished(self, result: edgellm.Result | BaseException) -> None:
        if isinstance(result, BaseException):
            return self.failed(result)
        self.draw()
        context, speed = result.context, f"{result.stats.generation_tps:.0f} tokens per second"
        dropped = f", {context.dropped} dropped" if context.dropped else ""
        window = f"context {context.used} of {context.n_ctx} tokens{dropped}"
        self.ready("Ask something", f"{speed}, {window} ({result.finish_reason})")

    def failed(self, error: BaseException) -> None:
        self.draw()
        self.messages.add("error", str(error))
        self.ready("Ask something" if self.session else "There is no model", "")

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 (Qt's name)
        """Ends what is running, within 100 ms; no thread stays behind."""
        self.closing = True
        self.loader.join()
        if self.model is not None:
            self.model.close()


def main() -> int:
    app = QApplication(sys.argv)
    window = Window(*app.arguments()[1:2])
    window.show()
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
