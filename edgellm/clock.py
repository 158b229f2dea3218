"""`Clock`: the moments of one answer, from which its `Stats` come."""

from __future__ import annotations

import time

from edgellm.machine import peak_rss
from edgellm.results import Stats


class Clock:
    """Seconds of `time.perf_counter` at which things happened; 0.0: not yet. It starts when it is made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.prompt_end = self.first = self.last = 0.0

    def stats(
        self, worked: int, n_tokens: int, passes: int, *, threads: int, backend: str, isa: str, draft_tokens: int = 0,
        draft_accepted: int = 0, draft_gain: float = 1.0, drafts: tuple[tuple[str, int, int], ...] = (),
    ) -> Stats:  # fmt: skip
        """Where `worked` tokens of the prompt went through the model and `n_tokens` came out, in `passes` passes."""
        now = time.perf_counter()
        prompt = (self.prompt_end or now) - self.start
        generation = (self.last or now) - self.first if self.first else 0.0
        return Stats(
            ttft=(self.first or now) - self.start,
            prompt_seconds=prompt,
            prompt_tps=worked / prompt if prompt > 0 and self.prompt_end else 0.0,
            generation_seconds=generation,
            generation_tps=(n_tokens - 1) / generation if n_tokens > 1 and generation > 0 else 0.0,
            passes=passes,
            threads=threads,
            backend=backend,
            isa=isa,
            peak_rss=peak_rss(),
            draft_tokens=draft_tokens,
            draft_accepted=draft_accepted,
            draft_gain=draft_gain,
            drafts=drafts,
        )
