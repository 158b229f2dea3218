"""RoPE tables against slow formulas written here from the papers, and the numbers that are published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgellm.config import RopeScaling
from edgellm.errors import ModelFormatError
from edgellm.rope import default_inv_freq, llama3_divisors, rope_table, yarn_inv_freq, yarn_magnitude

LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_ctx": 8192}


def test_default_speeds() -> None:
    table = rope_table(8, 10000.0)
    assert table.inv_freq.dtype == np.float64
    np.testing.assert_allclose(table.inv_freq, [1.0, 0.1, 0.01, 0.001], rtol=1e-15)
    assert table.magnitude == 1.0


def test_linear_divides_every_speed() -> None:
    plain = default_inv_freq(64, 10000.0)
    np.testing.assert_array_equal(rope_table(64, 1e4, RopeScaling("linear", 4.0)).inv_freq, plain / 4.0)


def slow_llama3(inv_freq: float, factor: float, low: float, high: float, ctx: int) -> float:
    """Llama 3.1's `apply_scaling` for one speed, by wavelength as Meta states it."""
    wavelength = 2 * math.pi / inv_freq
    if wavelength < ctx / high:
        return inv_freq
    if wavelength > ctx / low:
        return inv_freq / factor
    smooth = (ctx / wavelength - low) / (high - low)
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


@pytest.mark.parametrize(
    ("dims", "theta", "p"),
    [(128, 500000.0, LLAMA31), (64, 500000.0, LLAMA31 | {"factor": 32.0}), (16, 5e5, LLAMA31 | {"original_ctx": 64})],
)
def test_llama3_divisors(dims: int, theta: float, p: dict) -> None:
    plain = default_inv_freq(dims, theta)
    wanted = [slow_llama3(f, *(p[k] for k in ("factor", "low_freq_factor", "high_freq_factor", "original_ctx")))
              for f in plain]  # fmt: skip
    divisors = llama3_divisors(dims, theta, **p)
    np.testing.assert_allclose(rope_table(dims, theta, divisors=divisors).inv_freq, wanted, rtol=1e-12)
    assert divisors.min() == 1.0
    assert divisors.max() == p["factor"]


def test_llama31_known_pairs() -> None:
    """Llama 3.1 8B by hand: 64 ln(2048 / 2 pi) / ln(5e5) = 28.2 and 64 ln(8192 / 2 pi) / ln(5e5) = 34.98."""
    divisors = llama3_divisors(128, 500000.0, **LLAMA31)
    assert (divisors[:29] == 1.0).all()
    assert ((divisors[29:35] > 1.0) & (divisors[29:35] < 8.0)).all()
    assert (divisors[35:] == 8.0).all()


def slow_yarn(dims: int, theta: float, s: RopeScaling) -> list[float]:
    """YaRN pair by pair, with the ramp between the whole dimensions that frame the transition."""

    def dim_of(turns: float) -> float:
        return dims * math.log(s.original_ctx / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(0, math.floor(dim_of(s.beta_fast))), min(dims - 1, math.ceil(dim_of(s.beta_slow)))
    out = []
    for i in range(dims // 2):
        f = theta ** (-2 * i / dims)
        gamma = min(1.0, max(0.0, (i - low) / max(high - low, 0.001)))
        out.append((1 - gamma) * f + gamma * f / s.factor)
    return out


@pytest.mark.parametrize(
    ("dims", "theta", "scaling"),
    [
        (128, 10000.0, RopeScaling("yarn", 16.0, 4096)),
        (64, 1e6, RopeScaling("yarn", 4.0, 32768, beta_fast=24.0, beta_slow=2.0)),
        (8, 10000.0, RopeScaling("yarn", 2.0, 64)),
        (8, 10000.0, RopeScaling("yarn", 2.0, 3)),
        (8, 100.0, RopeScaling("yarn", 2.0, 4096)),  # the ramp ends beyond the last pair
    ],
)
def test_yarn(dims: int, theta: float, scaling: RopeScaling) -> None:
    table = rope_table(dims, theta, scaling)
    np.testing.assert_allclose(table.inv_freq, slow_yarn(dims, theta, scaling), rtol=1e-12)
    assert table.magnitude == pytest.approx(0.1 * math.log(scaling.factor) + 1.0, rel=1e-15)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = RopeScaling("yarn", 16.0, 4096)
    plain = default_inv_freq(128, 10000.0)
    stretched = yarn_inv_freq(plain, 10000.0, scaling)
    turns = 4096 * plain / (2 * math.pi)
    assert (stretched[turns > 40] == plain[turns > 40]).all()
    np.testing.assert_allclose(stretched[turns < 0.9], plain[turns < 0.9] / 16.0, rtol=1e-15)


def test_yarn_magnitude_of_the_file_wins() -> None:
    assert yarn_magnitude(RopeScaling("yarn", 4.0, 100, yarn_attn_factor=0.7)) == 0.7
    assert yarn_magnitude(RopeScaling("yarn", 1.0, 100)) == 1.0
    table = rope_table(8, 1e4, RopeScaling("yarn", 4.0, 100, attn_factor=2.0, yarn_attn_factor=0.7))
    assert table.magnitude == pytest.approx(1.4)
    assert rope_table(8, 1e4, RopeScaling("linear", 4.0, attn_factor=2.0)).magnitude == 2.0


@pytest.mark.parametrize("bad", [np.ones(3), np.zeros(4), -np.ones(4), np.array([1, 1, np.nan, 1]), np.ones((2, 2))])
def test_bad_divisors_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ModelFormatError, match="rope_freqs.weight"):
        rope_table(8, 10000.0, divisors=bad)
