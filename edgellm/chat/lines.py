"""Lines about a conversation: how full its window is, how fast the last answer was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.chat.terminal import counted
from edgellm.errors import one_line

if TYPE_CHECKING:
    from edgellm.results import Result, Stats
    from edgellm.session import Session


def context_line(session: Session) -> str:
    """How full the window is, and what has left it."""
    c = session.context
    text = f"context {c.used}/{c.n_ctx}"
    if c.dropped:
        messages = f" in {counted(session.dropped_messages, 'message')}" if session.dropped_messages else ""
        text += f", {counted(c.dropped, 'token')}{messages} left it ({c.policy})"
    return text


def status_line(session: Session, last: Result | None) -> str:
    """The line at the bottom of the screen: the window, and the speed of the last answer."""
    speed = f" | {last.stats.generation_tps:.1f} tokens/s" if last is not None and last.stats.generation_tps else ""
    return f" {context_line(session)}{speed} | /help"


def guesses(stats: Stats) -> str:
    """What speculation brought: `, 30 of 41 guessed tokens right: 1.40 x`, of several sources each; nothing where there
    was none."""
    if not stats.draft_tokens:
        return ""
    guessed = counted(stats.draft_tokens, "guessed token")
    each = ", ".join(f"{source} {true} of {n}" for source, n, true in stats.drafts)
    sources = f" ({each})" if len(stats.drafts) > 1 else ""
    return f", {stats.draft_accepted} of {guessed} right{sources}: {stats.draft_gain:.2f} x"


def stats_line(result: Result) -> str:
    """One line on the last answer."""
    s, c = result.stats, result.context
    answer, prompt = (counted(n, "token") for n in (result.usage.completion_tokens, result.usage.prompt_tokens))
    return (
        f"[ {answer} at {s.generation_tps:.1f} t/s{guesses(s)} | "
        f"prompt {prompt}, {c.reused} reused, {s.prompt_tps:.1f} t/s | "
        f"first token after {s.ttft:.2f} s | context {c.used}/{c.n_ctx}"
        f"{f', {c.dropped} dropped ({c.policy})' if c.dropped else ''} | "
        f"{s.backend} {s.isa}, {s.threads} threads | seed {result.seed} ]"
    )


def where_we_were(session: Session) -> str:
    """The end of a conversation that was loaded, for who has forgotten it."""
    messages = session.messages
    lines = [f"{counted(len(messages), 'message')}; {context_line(session)}"]
    lines += [f"{message['role']}: {one_line(str(message['content']), 200)}" for message in messages[-2:]]
    return "\n".join(lines)
