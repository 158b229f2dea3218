"""The results of tools/sparse_act.py as Markdown tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_act_speed import draft_gain

GOAL, AT = 1.15, 0.01  # how much faster, at which change of perplexity, the experiment would become an option
SPEED_HEADER = [
    "| | sparsity | perplexity | live channels | read of `o`, `down` | read of all | tokens/s | gain (middle half) |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
]
DRAFT_HEADER = [
    "| sparsity | perplexity | same likeliest token | cost of a sparse pass | guesses a pass | gain as a draft |",
    "|---:|---:|---:|---:|---:|---:|",
]


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def change(one: dict[str, Any]) -> str:
    """+0.95 ± 0.10 %"""
    return f"{100 * (one['ratio'] - 1):+.2f} ± {100 * one['ratio_error']:.2f} %"


def speed_row(label: str, quality: dict[str, Any] | None, seen: dict[str, float]) -> str:
    gain = f"{seen['gain']:.3f} ({seen['gain_low']:.3f} to {seen['gain_high']:.3f})"
    cells = [
        label, percent(quality["sparsity"]) if quality else "", change(quality) if quality else "",
        percent(seen["live"]), percent(seen["read_sites"]), percent(seen["read_all"]), f"{1 / seen['seconds']:,.0f}",
        gain,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def verdict(calibration: dict[str, Any], speed: dict[str, Any]) -> str:
    found = next(one for one in calibration["budgets"] if one["budget"] == AT)
    gain = speed["settings"][f"budget {AT:g}"]["gain"]
    reached = "reached" if gain >= GOAL else "not reached"
    return f"At {change(found)} of perplexity: {gain:.3f} times dense; the goal is {GOAL} at 1 %: **{reached}**."


def trained(calibration: dict[str, Any], speed: dict[str, Any]) -> list[str]:
    """The tables of a model with a calibration."""
    settings, uniform, half = speed["settings"], calibration["uniform"], calibration["curve"][4]
    lines = [*SPEED_HEADER, speed_row("dense, again", None, settings["dense"])]
    for one in calibration["budgets"]:
        lines.append(speed_row(f"budget {100 * one['budget']:g} %", one, settings[f"budget {one['budget']:g}"]))
    lines += [
        "", f"{verdict(calibration, speed)} Perplexity dense {calibration['ppl']:.2f}, on {calibration['held_out']} "
        f"windows of {calibration['n_ctx']} tokens. At {percent(half['sparsity'])} sparsity the path costs "
        f"{change(half)}, the same sparsity everywhere {change(uniform)}.", "", *DRAFT_HEADER,
    ]  # fmt: skip
    widths = {int(n): t for n, t in speed["widths"].items()}
    for one in calibration["curve"][4:7]:
        cost = 1 / settings[f"{one['sparsity']:.2f}"]["gain"]
        gain, k = draft_gain(one["same_top"], cost, widths)
        cells = (
            percent(one["sparsity"]), change(one), percent(one["same_top"]), f"{cost:.2f}", str(k), f"{gain:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    costs = ", ".join(f"{n}: {t / widths[1]:.2f}" for n, t in widths.items() if n > 1)
    return [*lines, "", f"Cost of a dense pass by its tokens, in plain passes: {costs}."]


def untrained(speed: dict[str, Any]) -> list[str]:
    """Speed alone, by the share of each input that is dead."""
    rows = [speed_row("dense, again" if name == "dense" else percent(float(name)), None, one)
            for name, one in speed["settings"].items()]  # fmt: skip
    return [*SPEED_HEADER, *rows]


def page(results: Sequence[dict[str, Any]], where: str) -> list[str]:
    """All lines; each result has `name`, `speed` and perhaps `calibration`."""
    lines = [where]
    for one in results:
        speed = one["speed"]
        rows, extra = " and ".join(map(str, speed["block_rows"])), speed["extra_bytes"] / 1e6
        lines += [
            "",
            f"**{one['name']}**, {speed['threads']} threads, blocks of {rows} rows, {extra:.0f} MB more memory:",
            "",
        ]
        lines += trained(one["calibration"], speed) if one.get("calibration") else untrained(speed)
    return lines


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Change of perplexity over sparsity, a line for each calibrated model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=120)
    for one in results:
        if not one.get("calibration"):
            continue
        curve = one["calibration"]["curve"]
        axes.plot(
            [c["sparsity"] * 100 for c in curve], [100 * (c["ratio"] - 1) for c in curve], "o-", label=one["name"]
        )
        uniform = one["calibration"]["uniform"]
        axes.plot(uniform["sparsity"] * 100, 100 * (uniform["ratio"] - 1), "x", color=axes.lines[-1].get_color())
    axes.axhline(1, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="inputs of o and down that count as 0, % (x: the same share everywhere)")
    axes.set(ylabel="perplexity, change in %", yscale="symlog", ylim=(-0.2, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
