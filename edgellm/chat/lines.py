"""Lines about a conversation: how full its window is, how fast the last answer was."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.results import Result
    from edgellm.session import Session


def context_line(session: Session) -> str:
    """How full the window is, and what has left it."""
    c = session.context
    text = f"context {c.used}/{c.n_ctx}"
    if c.dropped:
        messages = f" in {session.dropped_messages} messages" if session.dropped_messages else ""
        text += f", {c.dropped} tokens{messages} left it ({c.policy})"
    return text


def stats_line(result: Result) -> str:
    """One line on the last answer."""
    s, c = result.stats, result.context
    prompt = result.usage.prompt_tokens
    return (
        f"[ {result.usage.completion_tokens} tokens at {s.generation_tps:.1f} t/s | prompt {prompt} tokens, {c.reused} "
        f"reused, {s.prompt_tps:.1f} t/s | first token after {s.ttft:.2f} s | context {c.used}/{c.n_ctx}"
        f"{f', {c.dropped} dropped ({c.policy})' if c.dropped else ''} | "
        f"{s.backend} {s.isa}, {s.threads} threads | seed {result.seed} ]"
    )
