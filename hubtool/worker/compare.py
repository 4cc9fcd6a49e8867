"""Distances between next-token distributions, worked out over slices of the vocabulary, logits never held as a whole.

A position's Kullback-Leibler divergence is sum p (log p - log q), p the source's distribution and q the variant's, in
nats. With logits a and b it is sum p (a - b) - log sum exp a + log sum exp b: each of the sums grows slice by slice.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Distribution:
    """What is known of a lane's next-token distributions so far.

    Args:
        following: The token that follows each position, [positions].

    Attributes:
        top: The largest logit, [positions], as the two below.
        bottom: The smallest.
        likeliest: The token of the largest.
    """

    def __init__(self, following: npt.NDArray[np.int32]) -> None:
        self._following = following
        positions = len(following)
        self.top: Floats = np.full(positions, -np.inf)
        self.bottom: Floats = np.full(positions, np.inf)
        self.likeliest: npt.NDArray[np.int64] = np.zeros(positions, np.int64)
        self._sum: Floats = np.zeros(positions)
        self._correct: Floats = np.zeros(positions)

    def add(self, at: slice, first: int, logits: mx.array) -> tuple[Floats, mx.array]:
        """Take logits [n, slice of the vocabulary] of positions, the first of the slice being token `first`.

        Returns:
            By what sums over earlier slices are to be multiplied, [n], and exp(logits - top), [n, slice].
        """
        before = self.top[at]
        top = np.maximum(before, np.array(logits.max(axis=-1), np.float64))
        exponentials = mx.exp(logits - mx.array(top.astype(np.float32))[:, None])
        # The top in float32, as it was subtracted: exp(top) itself must be 1.
        scale = np.exp(before - top, where=np.isfinite(before), out=np.zeros_like(before))
        self._sum[at] = self._sum[at] * scale + np.array(exponentials.sum(axis=-1), np.float64)
        likeliest = first + np.array(mx.argmax(logits, axis=-1))
        self.likeliest[at] = np.where(top > before, likeliest, self.likeliest[at])
        self.top[at] = top
        self.bottom[at] = np.minimum(self.bottom[at], np.array(logits.min(axis=-1), np.float64))
        following = self._following[at] - first
        inside = np.flatnonzero((following >= 0) & (following < logits.shape[1]))
        if len(inside):
            values = logits[mx.array(inside), mx.array(following[inside])]
            self._correct[at.start + inside] = np.array(values, np.float64)
        return scale, exponentials

    @property
    def log_sum(self) -> Floats:
        """The logarithm of the sum of exp(logits), [positions]."""
        return self.top + np.log(self._sum)

    @property
    def surprise(self) -> Floats:
        """Minus the log-probability of the token that follows, in nats, [positions]."""
        return self.log_sum - self._correct

    @property
    def sum(self) -> Floats:
        """The sum of exp(logits - top), [positions]."""
        return self._sum


class Divergence:
    """The KL divergence of a variant from the source, as far as the slices go that were added."""

    def __init__(self, positions: int) -> None:
        self._sum: Floats = np.zeros(positions)

    def add(self, at: slice, scale: Floats, exponentials: mx.array, difference: mx.array) -> None:
        """Take exp(a - top) and a - b of a slice, both [n, slice], and what `Distribution.add` gave for the source."""
        self._sum[at] = self._sum[at] * scale + np.array((exponentials * difference).sum(axis=-1), np.float64)

    def nats(self, source: Distribution, variant: Distribution) -> Floats:
        """The divergence at each position, in nats; what rounding makes negative is 0."""
        return np.maximum(self._sum / source.sum - source.log_sum + variant.log_sum, 0.0)


@dataclass(frozen=True)
class Distance:
    """How far a variant's predictions are from its source's, by position [windows, scored].

    Attributes:
        kl: KL divergence in nats.
        agrees: Whether the likeliest token is the same.
        surprise: Minus the log-probability of the token that follows, in nats.
        source_surprise: The same of the source.
    """

    kl: Floats
    agrees: npt.NDArray[np.bool_]
    surprise: Floats
    source_surprise: Floats

    def figures(self) -> dict[str, Any]:
        """What is reported; the standard error is that of the windows' means, None for a single window."""
        means = self.kl.mean(axis=1)
        gain = np.exp(-self.surprise) - np.exp(-self.source_surprise)
        nats, source_nats = float(self.surprise.mean()), float(self.source_surprise.mean())
        median, p99, p999 = (float(each) for each in np.quantile(self.kl, (0.5, 0.99, 0.999)))
        return {
            "kl_mean": float(self.kl.mean()),
            "kl_stderr": float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None,
            "kl_median": median,
            "kl_p99": p99,
            "kl_p999": p999,
            "kl_max": float(self.kl.max()),
            "top1": float(self.agrees.mean()),
            "delta_p_mean": float(gain.mean()),
            "delta_p_rms": float(np.sqrt(np.square(gain).mean())),
            "ppl": float(np.exp(nats)),
            "ppl_source": float(np.exp(source_nats)),
            "ln_ppl_ratio": nats - source_nats,
        }

    def by_position(self, first: int, buckets: int) -> tuple[tuple[int, int, float], ...]:
        """Mean divergence by position in the window: first position, the one behind the last, nats.

        Args:
            first: The position in the window of the first that is scored.
            buckets: How many parts of the same size, nearly.
        """
        edges = np.linspace(0, self.kl.shape[1], min(buckets, self.kl.shape[1]) + 1).astype(int)
        return tuple(
            (first + int(begin), first + int(end), float(self.kl[:, begin:end].mean()))
            for begin, end in zip(edges, edges[1:], strict=False)
        )
