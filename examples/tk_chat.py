"""A chat window in Tk, which comes with Python: text as it comes, a stop button, and a window that never freezes.

`python examples/tk_chat.py [MODEL.gguf]`

The model works on threads of its own. What they report goes into a queue, and the window looks there 30 times a second
and draws all the text that has come at once.
(`root.after_idle` as `dispatch` would make them wait for the window, which waits for them when it closes the model.)
"""

import queue
import sys
import threading
import tkinter
from functools import partial
from tkinter import ttk

import edgellm


class Window:
    """The window and its conversation."""

    def __init__(self, root: tkinter.Tk, path: str | None = None) -> None:
        self.root, self.model, self.session, self.stream = root, None, None, None
        self.inbox = queue.SimpleQueue()  # functions that are to run on the window's thread
        self.said, self.closing = "", False  # text that is not drawn yet; the window is on its way out
        self.text = tkinter.Text(root, wrap="word", state="disabled", padx=10, pady=8)
        self.entry, self.bar = ttk.Entry(root, state="disabled"), ttk.Progressbar(root, maximum=1)
        self.button = ttk.Button(root, text="Stop", state="disabled", command=self.stop)
        self.bar.pack(side="bottom", fill="x")
        self.button.pack(side="bottom", fill="x")
        self.entry.pack(side="bottom", fill="x", pady=4)
        self.text.pack(fill="both", expand=True)
        self.entry.bind("<Return>", lambda _: self.send())
        root.title("edgellm")
        root.protocol("WM_DELETE_WINDOW", self.close)
        self.loader = threading.Thread(target=self.load, args=(path,))
        self.loader.start()
        self.look()

    def look(self) -> None:
        for _ in range(self.inbox.qsize()):  # not what comes meanwhile: the window has other things to do
            self.inbox.get()()
        self.draw()
        self.timer = self.root.after(33, self.look)

    # ---- on other threads

    def load(self, path: str | None) -> None:
        def progress(done: edgellm.Progress) -> bool:
            self.inbox.put(partial(self.show_progress, done))
            return not self.closing  # False ends the loading

        try:
            self.model = edgellm.load(path, progress=progress)
            self.inbox.put(self.loaded)
        except edgellm.EdgeLLMError as error:
            self.inbox.put(partial(self.finished, error))

    # ---- on the window's thread

    def take(self, text: str) -> None:
        self.said += text

    def draw(self) -> None:
        if self.said:
            self.text.configure(state="normal")
            self.text.insert("end", self.said)
            self.text.configure(state="disabled")
            self.text.see("end")
            self.said = ""

    def show_progress(self, progress: edgellm.Progress) -> None:
        self.bar.configure(value=progress.done / max(1, progress.total))

    def loaded(self) -> None:
        # Whole old turns leave a full context window; a model without a chat template has no turns.
        self.session = self.model.session(overflow="drop-turns" if self.model.chat_template else "sink")
        self.root.title(f"{self.model.name} - edgellm")
        self.finished(None)

    def send(self) -> None:
        question = self.entry.get().strip()
        if not question or self.session is None or self.stream is not None:
            return
        self.entry.delete(0, "end")
        self.take(f"> {question}\n")
        try:  # comes back at once
            self.stream = self.session.send(
                question, stream=True, on_token=lambda event: self.take(event.text), on_prefill=self.show_progress,
                on_done=self.finished, dispatch=self.inbox.put,
            )  # fmt: skip
        except edgellm.EdgeLLMError as error:
            return self.finished(error)
        self.button.configure(state="normal")

    def stop(self) -> None:
        if self.stream is not None:
            self.stream.stop()

    def finished(self, end: edgellm.Result | BaseException | None) -> None:
        if isinstance(end, BaseException):
            self.take(f"[{end}]\n\n")
        elif end is not None:
            self.take(f"\n[{end.finish_reason}, {end.stats.generation_tps:.0f} tokens per second]\n\n")
        self.stream = None
        self.bar.configure(value=0)
        self.button.configure(state="disabled")
        self.entry.configure(state="normal" if self.session else "disabled")
        self.entry.focus()

    def close(self) -> None:
        """Ends what is running, within 100 ms; no thread stays behind."""
        self.closing = True
        self.root.after_cancel(self.timer)
        self.loader.join()
        if self.model is not None:
            self.model.close()
        self.root.destroy()


if __name__ == "__main__":
    root = tkinter.Tk()
    Window(root, *sys.argv[1:2])
    root.mainloop()
