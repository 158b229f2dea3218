"""Rotation speeds of rotary position embeddings (Su et al. 2021), with the ways to stretch them to longer contexts.

All in float64: `angles[i] = position * inv_freq[i]`.
"""

from __future__ import annotations

import math

import numpy as np

from .config import RopeScaling
from .errors import ModelFormatError
from .plan import RopeTable


def rope_table(
    rotary_dims: int,
    theta: float,
    scaling: RopeScaling | None = None,
    divisors: np.ndarray | None = None,
    name: str = "rope_freqs.weight",
) -> RopeTable:
    """The table of a model: float64 inv_freq (rotary_dims / 2,) and magnitude.

    `divisors`, (rotary_dims / 2,), are the tensor `rope_freqs.weight` (`name`, for errors) in which GGUF keeps
    Llama 3's scaling: each speed is divided by its own number. Raises ModelFormatError when they have another shape or
    are not finite and positive.
    """
    scaling = scaling or RopeScaling()
    inv_freq = default_inv_freq(rotary_dims, theta)
    if divisors is not None:
        divisors = np.asarray(divisors, dtype=np.float64)
        if divisors.shape != inv_freq.shape or not np.all(np.isfinite(divisors) & (divisors > 0)):
            raise ModelFormatError(
                "the RoPE divisors are not positive numbers, one for each pair",
                field=name, value=divisors.shape, limit=inv_freq.shape, rule="P4",
            )  # fmt: skip
        inv_freq = inv_freq / divisors
    if scaling.kind == "yarn":
        return RopeTable(
            yarn_inv_freq(inv_freq, theta, scaling), yarn_magnitude(scaling) * scaling.attn_factor
        )
    return RopeTable(inv_freq / scaling.factor, scaling.attn_factor)


def longrope_table(
    rotary_dims: int, theta: float, scaling: RopeScaling, divisors: np.ndarray, name: str
) -> RopeTable:
    """The table of a Phi 3 with long contexts (LongRoPE, Ding et al. 2024).

    `divisors`, (rotary_dims / 2,), are the tensor `name`, one of its two sets; the magnitude is the file's attn_factor.
    Raises as `rope_table`.
    """
    return rope_table(rotary_dims, theta, RopeScaling(attn_factor=scaling.attn_factor), divisors, name)


def default_inv_freq(rotary_dims: int, theta: float) -> np.ndarray:
    """theta^(-2i / rotary_dims) for pair i: float64 (rotary_dims / 2,)."""
    return float(theta) ** -(np.arange(0, rotary_dims, 2, dtype=np.float64) / rotary_dims)


def yarn_inv_freq(inv_freq: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """YaRN (Peng et al. 2023, section 3.2): slow pairs are interpolated, fast ones stay, a ramp between.

    Pair i turns `original_ctx * inv_freq[i] / 2 pi` times over the trained context. Pairs with more than `beta_fast`
    turns keep their speed, those with fewer than `beta_slow` are slowed by `factor`.
    """
    n = len(inv_freq)

    def pair_with(turns: float) -> float:
        """The (fractional) pair that makes `turns` turns over the trained context."""
        return n * math.log(scaling.original_ctx / (turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_with(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_with(scaling.beta_slow)), 2 * n - 1)
    ramp = np.clip((np.arange(n) - low) / max(high - low, 0.001), 0.0, 1.0)  # 0: keep, 1: interpolate
    return inv_freq * (1.0 - ramp) + inv_freq / scaling.factor * ramp


def yarn_magnitude(scaling: RopeScaling) -> float:
    """YaRN's factor on cos and sin (its attention temperature, Peng et al. 2023, section 3.4): 0.1 ln(factor) + 1."""
    if scaling.yarn_attn_factor is not None:
        return scaling.yarn_attn_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0


def llama3_divisors(
    rotary_dims: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_ctx: int,
) -> np.ndarray:
    """The numbers that Llama 3.1 divides its speeds by: float64 (rotary_dims / 2,), written as `rope_freqs.weight`.

    Pairs that turn fewer than `low_freq_factor` times over `original_ctx` are slowed by `factor`, those with more than
    `high_freq_factor` turns stay, between them the speed is mixed linearly in the number of turns (the reference is
    `apply_scaling` of https://github.com/meta-llama/llama-models).
    """
    turns = original_ctx * default_inv_freq(rotary_dims, theta) / (2 * math.pi)
    keep = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0)
    return 1.0 / (keep + (1.0 - keep) / factor)
