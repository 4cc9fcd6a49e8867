# Copyright (c) 2026 hubtool contributors
# SPDX-License-Identifier: MIT
"""DeepSeek-V4 for MLX.

Shapes are written with these letters:

    B   batch rows                          H   num_attention_heads
    S   tokens of this call                 D   head_dim
    M   hc_mult, parallel residual streams  W   sliding_window
    T   compressed entries so far           C   hidden_size

A layer attends to the last W tokens and, where compress_ratios[layer] is not 0, to compressed entries: one for each
closed window of `ratio` tokens. Ratio 4 windows overlap and an indexer picks index_topk entries for each query;
with any other ratio every entry is attended to.

Where this file says float32, a GPU that has TF32 keeps 10 bits of what matrix products multiply, as MLX lets it unless
MLX_ENABLE_TF32=0 is in the environment.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace, shard_linear
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache
from mlx_lm.models.pipeline import PipelineMixin
from mlx_lm.models.switch_layers import SwitchGLU


@dataclass
class ModelArgs(BaseModelArgs):
    model_type: str = "deepseek_v4"
    vocab_size: int = 129280
    hidden_size: int = 4096
    num_hidden_layers: int = 43
    num_attention_heads: int = 64
    head_dim: int = 512
    qk_rope_head_dim: int = 64
    q_lora_rank: int = 1024
    o_lora_rank: int = 1024
    o_groups: int = 8
    sliding_window: int = 128
    compress_ratios: list[int] = field(default_factory=list)
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 512
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    num_experts_per_tok: int = 6
    num_hash_layers: int = 3
    scoring_func: str = "sqrtsoftplus"
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 1048576
    tie_word_embeddings: bool = False
    # As transformers 5 spells compress_ratios, num_hash_layers, rope_scaling with both thetas, and qk_rope_head_dim.
    layer_types: list[str] | None = None
    compress_rates: dict[str, int] | None = None
    mlp_layer_types: list[str] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._read_layer_types()
        self._read_rope()
        # The list goes on after the decoder layers with the MTP stages, which are not part of this model.
        if len(self.compress_ratios) < self.num_hidden_layers:
            raise ValueError(
                f"compress_ratios has {len(self.compress_ratios)} entries for {self.num_hidden_layers} layers."
            )
        if self.scoring_func not in _SCORES:
            raise ValueError(f"scoring_func is {self.scoring_func!r}, expected one of {', '.join(_SCORES)}.")
        if self.swiglu_limit is None:
            raise ValueError("swiglu_limit is null, expected a number.")

    def _read_layer_types(self) -> None:
        if self.layer_types:
            rates = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
            rates |= self.compress_rates or {}
            if not set(self.layer_types) <= set(rates):
                raise ValueError(f"layer_types has {set(self.layer_types) - set(rates)}, expected {', '.join(rates)}.")
            if any(_overlaps(rate) != (kind == "compressed_sparse_attention") for kind, rate in rates.items()):
                raise ValueError(f"compress_rates are {rates}, expected 4 where attention is sparse, and only there.")
            ratios = [rates[kind] for kind in self.layer_types]
            if self.compress_ratios and self.compress_ratios[: len(ratios)] != ratios:
                raise ValueError("compress_ratios and layer_types contradict each other.")
            self.compress_ratios = ratios
        if self.mlp_layer_types:
            self.num_hash_layers = self.mlp_layer_types.count("hash_moe")
            scored = len(self.mlp_layer_types) - self.num_hash_layers
            if self.mlp_layer_types != ["hash_moe"] * self.num_hash_layers + ["moe"] * scored:
                raise ValueError("mlp_layer_types must be some hash_moe, then moe.")

    def _read_rope(self) -> None:
        given = self.rope_scaling or self.rope_parameters or {}
        main, compress = {"rope_theta": self.rope_theta}, given
        if "main" in given or "compress" in given:
            main = {**main, **(given.get("main") or {})}
            # Where it does not stand here, transformers works out a factor that DeepSeek-V4 does not have.
            compress = {"attention_factor": None, **(given.get("compress") or {})}
            if main.get("rope_type", "default") != "default" or "rope_theta" not in compress:
                raise ValueError(f"rope_parameters are {given}, expected default for main, and a theta for compress.")
            self.rope_theta, self.compress_rope_theta = main["rope_theta"], compress["rope_theta"]
        elif given.get("rope_theta", self.rope_theta) not in (self.rope_theta, self.compress_rope_theta):
            raise ValueError(
                f"rope_parameters have theta {given['rope_theta']}: for which layers does not stand there."
            )
        fractions = (self.partial_rotary_factor, *(part.get("partial_rotary_factor") for part in (main, compress)))
        dims = {int(self.head_dim * fraction) for fraction in fractions if fraction is not None}
        if len(dims) > 1:
            raise ValueError(f"partial_rotary_factor gives {sorted(dims)} dims, expected the same everywhere.")
        self.qk_rope_head_dim = dims.pop() if dims else self.qk_rope_head_dim
        self.rope_scaling = compress


def _overlaps(ratio: int) -> bool:
    """Whether windows of this ratio overlap; those layers have an indexer too."""
    return ratio == 4


class Rope:
    """Interleaved rotary embedding of the trailing dimensions, with YaRN where `scaling` asks for it."""

    def __init__(self, dims: int, base: float, scaling: dict[str, Any] | None, max_positions: int):
        wavelengths = mx.array([base ** (i / dims) for i in range(0, dims, 2)])  # in tokens per radian
        self.inv_freq = 1 / wavelengths  # [dims / 2]
        scaling = scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return
        if kind != "yarn" or not scaling.get("factor") or scaling.get("attention_factor", 1) != 1:
            # YaRN's factor on the length of the rotated vectors (mscale) is not used by DeepSeek-V4.
            raise ValueError(f"RoPE is {scaling}, expected yarn with a factor and attention_factor 1, or default.")
        original = scaling.get("original_max_position_embeddings", max_positions)

        def dim_of(rotations: float) -> float:
            # The dim that turns this often over the original context: section 3.2 of arXiv:2309.00071.
            return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(dim_of(scaling.get("beta_fast") or 32)), 0)
        high = min(math.ceil(dim_of(scaling.get("beta_slow") or 1)), dims - 1)
        stretched = mx.clip((mx.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
        self.inv_freq = (1 - stretched) / wavelengths + stretched / (scaling["factor"] * wavelengths)

    def __call__(self, positions: mx.array, width: int) -> mx.array:
        """Rotations [..., width / 2] of vectors of `width` dims at positions [...]: 1 for the leading dims."""
        angles = positions[..., None].astype(mx.float32) * self.inv_freq
        rotations = mx.cos(angles) + 1j * mx.sin(angles)
        pad = width // 2 - rotations.shape[-1]
        return mx.pad(rotations, [(0, 0)] * positions.ndim + [(pad, 0)], constant_values=1)


# A GPU spends a decoded token's time on starting kernels, so long chains of small operations are one kernel there. The
# sources are plain enough to be both Metal and CUDA; what differs is defined in front of them. A group of THREADS
# threads, `lane` in it, works on one `row`.
_DIALECTS = {
    "metal": """
#define SHARED threadgroup
#define BARRIER threadgroup_barrier(mem_flags::mem_threadgroup)
    const unsigned int row = threadgroup_position_in_grid.x, lane = thread_position_in_threadgroup.x;
""",
    "cuda": """
#define SHARED __shared__
#define BARRIER __syncthreads()
    const unsigned int row = blockIdx.x, lane = threadIdx.x;
""",
}
_SUM_SOURCE = """
#define SUM_OVER_THREADS(value)                                        \\
    BARRIER;                                                           \\
    partial[lane] = value;                                             \\
    BARRIER;                                                           \\
    for (unsigned int half = THREADS / 2; half > 0; half /= 2) {       \\
        if (lane < half) partial[lane] += partial[lane + half];        \\
        BARRIER;                                                       \\
    }
    SHARED float partial[THREADS];
"""


class Kernel:
    """A kernel for GPUs: called with a row for each group of threads, it gives its outputs."""

    def __init__(self, name: str, inputs: list[str], outputs: list[str], source: str):
        self.name, self.inputs, self.outputs = f"deepseek_v4_{name}", inputs, outputs
        self.source = _SUM_SOURCE + source
        self.made: Any = None

    def __call__(
        self,
        inputs: list[mx.array],
        outputs: list[tuple[tuple[int, ...], mx.Dtype]],
        *,
        rows: int,
        threads: int,
        **constants: int | bool | mx.Dtype,
    ) -> list[mx.array]:
        if self.made is None:
            dialect, make = (
                ("metal", mx.fast.metal_kernel) if mx.metal.is_available() else ("cuda", mx.fast.cuda_kernel)
            )
            source = _DIALECTS[dialect] + self.source
            self.made = make(name=self.name, input_names=self.inputs, output_names=self.outputs, source=source)
        made: list[mx.array] = self.made(
            inputs=inputs,
            template=[("THREADS", threads), *constants.items()],
            grid=(rows * threads, 1, 1),
            threadgroup=(threads, 1, 1),
            output_shapes=[shape for shape, _ in outputs],
            output_dtypes=[dtype for _, dtype in outputs],
        )
        return made


def _runs_kernels() -> bool:
    return bool(mx.default_device() == mx.gpu)


@lru_cache
def _constants(*values: float) -> mx.array:
    return mx.array(values)


def _compiles() -> bool:
    """Whether it takes longer to name operations than to do them."""
    return _runs_kernels()


def _threads(work: int) -> int:
    """How many threads share so many pieces of work: a power of two from 32 to 512."""
    return int(min(max(1 << (max(work, 1).bit_length() - 1), 32), 512))


def _rotate(x: mx.array, rotations: mx.array) -> mx.array:
    """x [..., D] in float32, its pairs of dims (2i, 2i + 1) turned by rotations [..., D / 2] as complex numbers."""
    return (x.astype(mx.float32).view(mx.complex64) * rotations).view(mx.float32)


_TURN_KERNEL = Kernel(
    "turn",
    ["x", "weight", "turns", "eps"],
    ["out"],
    """
    const unsigned int first = row * D, turn = (row / HEADS) % turns_shape[0] * D;
    float scale = 1.0f;
    if (NORM) {
        float squares = 0.0f;
        for (unsigned int i = lane; i < D; i += THREADS) {
            const float value = static_cast<float>(x[first + i]);
            squares += value * value;
        }
        SUM_OVER_THREADS(squares);
        scale = 1.0f / sqrt(partial[0] / D + eps[0]);
    }
    for (unsigned int i = 2 * lane; i < D; i += 2 * THREADS) {
        float a = static_cast<float>(x[first + i]) * scale, b = static_cast<float>(x[first + i + 1]) * scale;
        if (WEIGHT) {
            a *= static_cast<float>(weight[i]);
            b *= static_cast<float>(weight[i + 1]);
        }
        const float re = turns[turn + i], im = turns[turn + i + 1];
        out[first + i] = static_cast<T>(static_cast<float>(static_cast<ROUNDED>(a * re - b * im)));
        out[first + i + 1] = static_cast<T>(static_cast<float>(static_cast<ROUNDED>(a * im + b * re)));
    }
""",
)


def _turned(
    x: mx.array,
    rotations: mx.array,
    rounded: mx.Dtype,
    dtype: mx.Dtype,
    norm: nn.RMSNorm | None = None,
    eps: float | None = None,
) -> mx.array:
    """x [B, S, ..., D] rotated in float32, rounded to a dtype and stored as another one.

    Before that it goes through `norm`, or is given a root mean square of 1 where `eps` is not None.
    """
    if not _runs_kernels():
        if norm is not None:
            x = norm(x)
        elif eps is not None:
            x = mx.fast.rms_norm(x.astype(mx.float32), None, eps)
        return _rotate(x, rotations).astype(rounded).astype(dtype)
    dims = x.shape[-1]
    turns = rotations.view(mx.float32).reshape(-1, dims)
    epsilon = _constants(norm.eps if norm is not None else eps or 0.0)
    (out,) = _TURN_KERNEL(
        [x, epsilon if norm is None else norm.weight, turns, epsilon],
        [(x.shape, dtype)],
        rows=x.size // dims,
        threads=_threads(dims // 2),
        D=dims,
        HEADS=math.prod(x.shape[2:-1]),
        NORM=norm is not None or eps is not None,
        WEIGHT=norm is not None,
        ROUNDED=rounded,
        T=dtype,
    )
    return out


def _uniform(values: list[int]) -> bool:
    return min(values) == max(values)


def _take_rows(x: mx.array, first: list[int], length: int) -> mx.array:
    """x[b, first[b] : first[b] + length] of x [B, rows, dims] for each b; rows that do not exist hold anything."""
    if _uniform(first):
        return x[:, first[0] : first[0] + length]
    index = mx.array(first)[:, None] + mx.arange(length)
    return mx.take_along_axis(x, mx.clip(index, 0, x.shape[1] - 1)[..., None], axis=1)


class DeepseekV4Cache:
    """What one layer remembers of B sequences; a single sequence is a batch of one.

    Per-token rows are kept as long as a later token needs them: the keys of the last W - 1 tokens, and what the
    compressors need of the windows that are not closed, side by side for all of them: what is weighed and the weights,
    for entries and then for index entries. They are right-aligned, next to the tokens that follow.
    Compressed entries are kept for good: entry w of a sequence, which stands for its tokens up to (w + 1) * ratio, is
    at index w. What stands beyond a sequence's own entries is overwritten before a token can see it. So sequences of
    any lengths stand side by side, and their offsets say everything else.

    In bfloat16 a sequence of V4-Flash takes 23 MB and 6,880 bytes a token, with all layers: 2 bytes of 640 / 4 dims
    in 21 of them and of 512 / 128 dims in 20. Keys of every token would take 44,032 bytes.
    """

    WINDOW, ROWS, ENTRIES, INDEX_ENTRIES = range(4)
    KV = GATE = INDEX_KV = INDEX_GATE = ROWS
    step = 256  # entries are allocated in multiples of this

    def __init__(self, ratio: int = 0):
        self.ratio = ratio
        self.arrays: list[mx.array | None] = [None] * 4  # each [B, rows, dims]
        self.offset = [0]  # tokens seen of each sequence, negative while its left padding is still to come
        self.awaited: list[int] | None = None  # tokens still to come of each sequence, while padded on the right

    def counts(self, length: int) -> list[int]:
        """How many of the next `length` tokens of each sequence are not padding on the right."""
        if self.awaited is None:
            return [length] * len(self.offset)
        return [min(length, awaited) for awaited in self.awaited]

    def advance(self, length: int) -> None:
        """Count the next `length` tokens as seen, once the layer has pushed their rows."""
        counts = self.counts(length)
        self.offset = [offset + count for offset, count in zip(self.offset, counts, strict=True)]
        if self.awaited is not None:
            self.awaited = [awaited - count for awaited, count in zip(self.awaited, counts, strict=True)]

    def push(self, slot: int, rows: mx.array, keep: int) -> mx.array:
        """Append rows [B, S, dims] to the `keep` rows before them and return all; the last `keep` are remembered."""
        past = self.arrays[slot]
        if past is None:
            past = mx.zeros((rows.shape[0], keep, rows.shape[2]), rows.dtype)
        both = mx.concatenate([past, rows], axis=1)
        kept = _take_rows(both, self.counts(rows.shape[1]), keep)
        # A view would hold all rows of a prompt; of a single token it holds one more than is kept.
        self.arrays[slot] = mx.contiguous(kept) if rows.shape[1] > 1 else kept
        return both

    def store(self, slot: int, first: list[int], entries: mx.array) -> None:
        """Put entries [B, n, dims] at index first[b] of each sequence."""
        batch, n, dims = entries.shape
        end = max(first) + n
        pool = self.arrays[slot]
        if pool is None:
            pool = mx.zeros((batch, 0, dims), entries.dtype)
        if pool.shape[1] < end:
            more = -(-(end - pool.shape[1]) // self.step) * self.step
            pool = mx.concatenate([pool, mx.zeros((batch, more, dims), pool.dtype)], axis=1)
        if _uniform(first):
            pool[:, first[0] : end] = entries
        else:
            pool[mx.arange(batch)[:, None], mx.array(first)[:, None] + mx.arange(n)] = entries
        self.arrays[slot] = pool

    # mlx-lm saves and restores `state` alone. Before 0.32 it could save nothing but arrays there, and asked for the
    # rest as `meta_state`: it cannot save these caches.
    @property
    def state(self) -> tuple[list[mx.array | None], list[int], int]:
        return self.arrays, self.offset, self.ratio

    @state.setter
    def state(self, state: tuple[list[mx.array | None], list[int], int]) -> None:
        self.arrays, self.offset, self.ratio = state
        self.awaited = None

    @classmethod
    def from_state(cls, state: tuple[list[mx.array | None], list[int], int]) -> "DeepseekV4Cache":
        cache = cls()
        cache.state = state
        return cache

    @classmethod
    def own(cls, cache: Any) -> "DeepseekV4Cache":
        """The cache itself, or what `load_prompt_cache` put into one of another class."""
        return cache if isinstance(cache, cls) else cls.from_state(cache.state)

    def is_trimmable(self) -> bool:
        # Rows that left the sliding window are gone, and a closed window cannot be opened again.
        return False

    def size(self) -> int:
        return max(self.offset)

    def empty(self) -> bool:
        return self.arrays[self.WINDOW] is None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays if array is not None)

    def prepare(
        self,
        *,
        left_padding: list[int] | None = None,
        lengths: list[int] | None = None,
        right_padding: list[int] | None = None,
    ) -> None:
        """Announce padding of the tokens to come: on the left of an empty cache, or right of `lengths` tokens."""
        if left_padding is not None:
            if not self.empty():
                raise ValueError("Only an empty cache can be padded on the left.")
            self.offset = [-padding for padding in left_padding]
        if right_padding is not None and lengths is not None:
            self.awaited = list(lengths)

    def finalize(self) -> None:
        """The tokens announced by `prepare` have all come."""
        self.awaited = None

    @classmethod
    def merge(cls, caches: list["DeepseekV4Cache"]) -> "DeepseekV4Cache":
        """One cache with the sequences of all, in order."""
        caches = [cls.own(cache) for cache in caches]
        merged = cls(caches[0].ratio)
        merged.offset = [offset for cache in caches for offset in cache.offset]
        for slot in range(len(merged.arrays)):
            held = [cache.arrays[slot] for cache in caches]
            known = [array for array in held if array is not None]
            if not known:
                continue
            rows, dims, dtype = max(array.shape[1] for array in known), known[0].shape[2], known[0].dtype
            parts = [
                mx.zeros((len(cache.offset), rows, dims), dtype)
                if array is None
                else mx.pad(array, [(0, 0), (0, rows - array.shape[1]), (0, 0)])
                for cache, array in zip(caches, held, strict=True)
            ]
            merged.arrays[slot] = mx.concatenate(parts, axis=0)
        return merged

    def extend(self, other: "DeepseekV4Cache") -> None:
        """Add the sequences of another cache, in place."""
        self.state = self.merge([self, other]).state

    def filter(self, batch_indices: list[int]) -> None:
        """Keep the sequences with these indices only, in place."""
        rows = mx.array(batch_indices)
        self.arrays = [None if array is None else array[rows] for array in self.arrays]
        self.offset = [self.offset[int(index)] for index in batch_indices]

    def extract(self, idx: int) -> "DeepseekV4Cache":
        """A cache with one of the sequences, on its own memory."""
        cache = DeepseekV4Cache(self.ratio)
        cache.offset = [self.offset[idx]]
        cache.arrays = [None if array is None else mx.contiguous(array[idx : idx + 1]) for array in self.arrays]
        for slot in (self.ENTRIES, self.INDEX_ENTRIES):
            pool = cache.arrays[slot]
            if pool is not None:
                cache.arrays[slot] = mx.contiguous(pool[:, : max(cache.offset[0], 0) // self.ratio])
        return cache


# load_prompt_cache looks a class up by its name among mlx_lm's own, and `mlx_lm.generate --prompt-cache-file` does so
# before it imports this file. Under this name the state comes back in an ArraysCache, and the model takes it over when
# it first meets it. ArraysCache.merge knows nothing of this: call Model.own_cache before such a cache joins a batch.
DeepseekV4Cache.__name__ = ArraysCache.__name__


class Windows:
    """The windows of `ratio` tokens that close in a call: first[b] up to first[b] + n of each sequence."""

    def __init__(self, ratio: int, first: list[int], stop: list[int], positions: mx.array):
        # A compressor combines `span` tokens for an entry, and keeps the last span - 1 between calls.
        self.span = 2 * ratio if _overlaps(ratio) else ratio
        self.first = [max(position, 0) // ratio for position in first]
        self.n = max(max(end, 0) // ratio - w for end, w in zip(stop, self.first, strict=True))
        # Of the rows kept and pushed, the one with the first token of the first window's span less the overlap.
        self.row = [w * ratio + ratio - 1 - position for w, position in zip(self.first, first, strict=True)]
        self.row_array = mx.array(self.row)
        self.entries = max(max(stop) // ratio, 0)  # T, the most that a sequence has after the call
        self.index = mx.array(self.first if not _uniform(self.first) else self.first[:1])[:, None] + mx.arange(self.n)
        self.visible = (positions + 1) // ratio  # [1 or B, S], how many entries a query sees
        self.all_visible = _uniform(stop) and positions.shape[1] == 1


class Ropes(NamedTuple):
    plain: Rope  # for layers that attend to the sliding window only
    compressed: Rope  # for all that a layer with a compressor rotates, its queries and window included


class Rotations(NamedTuple):
    query: mx.array  # [1 or B, S, 1, D / 2], scaled by D ** -0.5 as attention wants queries
    key: mx.array  # [1 or B, S, D / 2]
    output: mx.array  # [1 or B, S, 1, D / 2], backwards: the keys, which are the values too, were rotated


class Step:
    """The positions of a call's tokens and what follows from them, worked out once for all layers."""

    def __init__(self, args: ModelArgs, ropes: Ropes, cache: DeepseekV4Cache, length: int, dtype: mx.Dtype):
        self.dtype, self.like = dtype, mx.array(0, dtype)  # of what goes into a block
        self.window = args.sliding_window
        self.first = cache.offset
        stop = [position + count for position, count in zip(self.first, cache.counts(length), strict=True)]
        first = self.first[:1] if _uniform(self.first) else self.first
        self.start = mx.array(first)[:, None]  # [1 or B, 1]
        positions = self.start + mx.arange(length)  # [1 or B, S]
        plain, compressed = (rope(positions, args.head_dim) for rope in ropes)
        self.plain_rotations, self.rotations = (
            Rotations(r[:, :, None] * args.head_dim**-0.5, r, mx.conjugate(r)[:, :, None]) for r in (plain, compressed)
        )
        self.windows: dict[int, Windows] = {}
        self.masks: dict[tuple[int, int], mx.array | None] = {}
        self.entry_rotations: dict[tuple[int, int], mx.array] = {}
        for ratio in set(args.compress_ratios[: args.num_hidden_layers]) - {0}:
            windows = self.windows[ratio] = Windows(ratio, self.first, stop, positions)
            for width in (args.head_dim, args.index_head_dim) if _overlaps(ratio) else (args.head_dim,):
                self.entry_rotations[ratio, width] = ropes.compressed(windows.index * ratio, width)
            if _overlaps(ratio):
                self.index_rotations = ropes.compressed(positions, args.index_head_dim)[:, :, None]

    def window_mask(self, lo: int, hi: int) -> mx.array | None:
        """Which keys of the sliding window the queries lo to hi see, [1 or B, n, Q, 1, W - 1 + Q]; None for all."""
        if (lo, hi) not in self.masks:
            self.masks[lo, hi] = self._window_mask(lo, hi)
        return self.masks[lo, hi]

    def _window_mask(self, lo: int, hi: int) -> mx.array | None:
        size = min(hi - lo, self.window)  # Q, the queries of a block
        blocks = (hi - lo) // size
        key = mx.arange(self.window - 1 + size)
        query = mx.arange(size)[:, None]
        mask = None
        if size > 1:
            mask = (query <= key) & (key < query + self.window)
        before = lo - self.window + 1  # the first key, relative to the first token of the call
        if min(self.first) + before < 0:
            position = self.start + before + size * mx.arange(blocks)  # [1 or B, n], of the first key of each block
            exists = position[..., None, None] + key >= 0
            mask = exists if mask is None else mask & exists
        return None if mask is None else mask[..., None, :]


# Queries are attended to in slices, so that no more than this many float32 scores are held at a time.
_MAX_SCORES = 1 << 26


def _slices(length: int, window: int, width: int) -> list[tuple[int, int]]:
    """Slices of `length` queries of `width` scores each, each at most one window long or a multiple of it."""
    size = max(_MAX_SCORES // width, 1)
    if size > window:
        size -= size % window
    whole = length - length % window if length > window else length
    return [(lo, hi) for lo, hi in pairwise([*range(0, whole, size), whole, length]) if lo < hi]


# Up to as many float32 rows meet a quantized weight as it is packed. CUDA's product of more fails for some widths in
# MLX 0.32; there the weight is unpacked first, and takes 4 bytes for each of its values meanwhile.
_FEW_ROWS = 4


Linear = nn.Linear | nn.QuantizedLinear


def _product(x: mx.array, layer: Linear, arrays: list[mx.array]) -> mx.array:
    """x times a transposed weight that is stored as the layer's is: alone, or with scales and perhaps biases."""
    if isinstance(layer, nn.Linear):
        return x @ arrays[0].T
    if x.dtype == mx.float32 and x.size // x.shape[-1] > _FEW_ROWS and _runs_kernels() and mx.cuda.is_available():
        exact = [array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array for array in arrays]
        return x @ _with(mx.dequantize, exact, layer).T
    return _with(partial(mx.quantized_matmul, x), arrays, layer)


def _with(function: Callable[..., mx.array], arrays: list[mx.array], layer: nn.QuantizedLinear) -> mx.array:
    return function(*arrays, group_size=layer.group_size, bits=layer.bits, mode=layer.mode)


def _stored(layer: nn.Module) -> list[mx.array]:
    """A layer's weight, and where it is quantized its scales and biases."""
    return [layer[name] for name in ("weight", "scales", "biases") if layer.get(name) is not None]


class Stack:
    """Layers that meet the same input, as one product where they are stored alike.

    Their weights are joined once, and what the layers hold becomes views of that. As soon as a layer holds something
    else (an adapter, a gradient's tracer, a shard), each is multiplied with by itself again.

    Args:
        dtype: Of the input; scales of another one would be converted at every call, so they are kept in this too.
    """

    def __init__(self, dtype: mx.Dtype | None = None):
        self.dtype = dtype
        self.joined: list[mx.array] = []
        self.weights: list[mx.array] = []

    def join(self, layers: Sequence[Linear]) -> None:
        """Join what the layers hold now, if they can be."""
        first, self.joined = layers[0], []
        if type(first) not in (nn.Linear, nn.QuantizedLinear) or "bias" in first or len(set(map(_form, layers))) > 1:
            return
        self.joined = [mx.concatenate(list(arrays)) for arrays in zip(*map(_stored, layers), strict=True)]
        self.weights = [*mx.split(self.joined[0], list(accumulate(len(layer.weight) for layer in layers))[:-1])]
        for layer, weight in zip(layers, self.weights, strict=True):
            layer.weight = weight
        if self.dtype is not None:
            self.joined[1:] = [a if a.dtype == mx.uint8 else a.astype(self.dtype) for a in self.joined[1:]]

    def __call__(self, x: mx.array, layers: Sequence[Linear]) -> mx.array:
        """Outputs of the layers, side by side."""
        if self.joined and all(layer.weight is mine for layer, mine in zip(layers, self.weights, strict=True)):
            return _product(x, layers[0], self.joined)
        return mx.concatenate([_apart(layer, x) for layer in layers], axis=-1)


def _form(layer: nn.Module) -> tuple[object, ...]:
    """What layers have in common that can be stacked."""
    how = [getattr(layer, name, None) for name in ("group_size", "bits", "mode")]
    return type(layer), *how, *((array.dtype, array.shape[1:]) for array in _stored(layer))


def _apart(layer: Linear, x: mx.array) -> mx.array:
    """layer(x), by a product that every backend has."""
    if type(layer) in (nn.Linear, nn.QuantizedLinear) and "bias" not in layer:
        return _product(x, layer, _stored(layer))
    outputs: mx.array = layer(x)  # an adapter, perhaps
    return outputs


Part = tuple[mx.array, mx.array | None]  # keys, mask


def _attend(q: mx.array, parts: list[Part], sinks: mx.array) -> mx.array:
    """Attention [B, S, H, D] of scaled queries [B, S, H, D] over all parts at once; everything is float32.

    A part is keys, which are the values too, [B, n, K, D], and a mask [1 or B, n, S / n, 1, K] or None: the queries
    are cut into n blocks, and block i attends to keys[:, i]. An attention sink [H] takes its share of the weight.
    """
    batch, length, heads, dims = q.shape
    if length == 1 and len(parts) > 1:
        parts = [_joined(parts)]
    outputs, weights = [], []
    for keys, mask in parts:
        n, size = keys.shape[1:3]
        scores = q.reshape(batch, n, -1, dims) @ keys.swapaxes(-1, -2)  # [B, n, S / n * H, K]
        if mask is not None:
            scores = scores.reshape(batch, n, length // n, heads, size)
            scores = mx.where(mask, scores, mx.finfo(mx.float32).min).flatten(2, 3)
        outputs.append((mx.softmax(scores, axis=-1) @ keys).reshape(q.shape))
        weights.append(mx.logsumexp(scores, axis=-1).reshape(batch, length, heads, 1))
    return _share(outputs, weights, sinks[:, None])


@partial(mx.compile, shapeless=True)
def _share(outputs: list[mx.array], weights: list[mx.array], sinks: mx.array) -> mx.array:
    """The outputs, each with its share of the weight, of which the sinks take theirs; weights are logarithms."""
    total = reduce(mx.logaddexp, weights, sinks)
    return reduce(mx.add, (mx.exp(weight - total) * out for weight, out in zip(weights, outputs, strict=True)))


def _joined(parts: list[Part]) -> Part:
    """The parts of a single query as one."""
    keys = mx.concatenate([keys for keys, _ in parts], axis=2)
    if all(mask is None for _, mask in parts):
        return keys, None
    masks = [mx.ones((1, 1, 1, 1, keys.shape[2]), mx.bool_) if mask is None else mask for keys, mask in parts]
    batch = max(mask.shape[0] for mask in masks)
    return keys, mx.concatenate([mx.broadcast_to(mask, (batch, *mask.shape[1:])) for mask in masks], axis=-1)


_ENTRY_KERNEL = Kernel(
    "entry",
    ["rows", "ape", "weight", "turns", "index", "first", "eps"],
    ["out"],
    """
    SHARED float pooled[D];
    const int n = index_shape[1], sequence = row / n, window = row % n, count = rows_shape[1];
    const int start = first[sequence % first_shape[0]] + window * RATIO;
    const bool opens = OVERLAPS && index[(sequence % index_shape[0]) * n + window] == 0;
    float squares = 0.0f;
    for (int d = lane; d < D; d += THREADS) {
        float top = -INFINITY;
        for (int pass = 0; pass < 2; ++pass) {
            float value = 0.0f, total = 0.0f;
            for (int i = opens ? RATIO : 0; i < SPAN; ++i) {
                const int at = start + i < 0 ? 0 : start + i >= count ? count - 1 : start + i;
                const int column = OVERLAPS && i >= RATIO ? D + d : d;
                const int kv = (sequence * count + at) * rows_shape[2] + AT + column;
                const float gate = rows[kv + WIDTH] + ape[i % RATIO * WIDTH + column];
                if (pass == 0) {
                    top = gate > top ? gate : top;
                } else {
                    const float share = exp(gate - top);
                    value += share * rows[kv];
                    total += share;
                }
            }
            pooled[d] = value / total;
        }
        squares += pooled[d] * pooled[d];
    }
    SUM_OVER_THREADS(squares);
    const float scale = 1.0f / sqrt(partial[0] / D + eps[0]);
    const int turn = row % turns_shape[0] * D;
    for (int d = 2 * lane; d < D; d += 2 * THREADS) {
        const float a = pooled[d] * scale * static_cast<float>(weight[d]);
        const float b = pooled[d + 1] * scale * static_cast<float>(weight[d + 1]);
        out[row * D + d] = static_cast<T>(a * turns[turn + d] - b * turns[turn + d + 1]);
        out[row * D + d + 1] = static_cast<T>(a * turns[turn + d + 1] + b * turns[turn + d]);
    }
""",
)


class Compressor(nn.Module):
    """Makes one entry of a closed window: the sum of its rows, weighted by a softmax for each dim.

    Args:
        at: Column of the cache's rows from which on this compressor's are.
        slot: Of the cache, where the entries go.
    """

    def __init__(self, args: ModelArgs, ratio: int, head_dim: int, at: int, slot: int):
        super().__init__()
        self.ratio = ratio
        self.head_dim = head_dim
        self.at = at
        self.slot = slot
        # Overlapping windows: the first half is for the next window's entry, the second for the token's own.
        self.width = 2 * head_dim if _overlaps(ratio) else head_dim
        self.wkv = nn.Linear(args.hidden_size, self.width, bias=False)
        self.wgate = nn.Linear(args.hidden_size, self.width, bias=False)
        self.ape = mx.zeros((ratio, self.width))
        self.norm = nn.RMSNorm(head_dim, eps=args.rms_norm_eps)

    def __call__(self, rows: mx.array, step: Step, cache: DeepseekV4Cache) -> mx.array | None:
        """Entries [B, at least T, head_dim] after rows [B, span - 1 + S, ...], float32; None before the first."""
        windows = step.windows[self.ratio]
        if windows.n:
            rotations = step.entry_rotations[self.ratio, self.head_dim]
            if _runs_kernels():
                entries = self._made(rows, windows, rotations, step.dtype)
            else:
                kv, gate = mx.split(rows[..., self.at : self.at + 2 * self.width], 2, axis=-1)
                entries = _rotate(self.norm(self._pool(kv, gate, windows)), rotations).astype(step.dtype)
            cache.store(self.slot, windows.first, entries)
        return cache.arrays[self.slot]

    def _made(self, rows: mx.array, windows: Windows, rotations: mx.array, dtype: mx.Dtype) -> mx.array:
        turns, n = rotations.view(mx.float32).reshape(-1, self.head_dim), windows.n
        (entries,) = _ENTRY_KERNEL(
            [rows, self.ape, self.norm.weight, turns, windows.index, windows.row_array, _constants(self.norm.eps)],
            [((rows.shape[0], n, self.head_dim), dtype)],
            rows=rows.shape[0] * n,
            threads=_threads(self.head_dim // 2),
            D=self.head_dim,
            AT=self.at,
            WIDTH=self.width,
            RATIO=self.ratio,
            SPAN=windows.span,
            OVERLAPS=_overlaps(self.ratio),
            T=dtype,
        )
        return entries

    def _pool(self, kv: mx.array, gate: mx.array, windows: Windows) -> mx.array:
        """[B, n, head_dim] of the rows [B, span - 1 + S, width]."""
        rows = (windows.n - 1) * self.ratio + windows.span
        shape = (kv.shape[0], rows // self.ratio, self.ratio, -1)
        kv = _take_rows(kv, windows.row, rows).reshape(shape)
        gate = _take_rows(gate, windows.row, rows).reshape(shape) + self.ape
        if _overlaps(self.ratio):
            kv, gate = self._overlap(kv), self._overlap(gate)  # [B, n, span, head_dim]
            if 0 in windows.first:
                exists = (windows.index[..., None] > 0) | (mx.arange(windows.span) >= self.ratio)
                gate = mx.where(exists[..., None], gate, -mx.inf)
        return (kv * mx.softmax(gate, axis=2)).sum(axis=2)

    def _overlap(self, rows: mx.array) -> mx.array:
        """[B, n + 1, ratio, 2 head_dim] -> [B, n, 2 ratio, head_dim]: the previous window's and the window's own."""
        return mx.concatenate([rows[:, :-1, :, : self.head_dim], rows[:, 1:, :, self.head_dim :]], axis=2)


class Indexer(nn.Module):
    """Chooses the index_topk compressed entries that a query attends to."""

    def __init__(self, args: ModelArgs, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.n_heads = args.index_n_heads
        self.head_dim = args.index_head_dim
        self.topk = args.index_topk
        self.wq_b = nn.Linear(args.q_lora_rank, self.n_heads * self.head_dim, bias=False)
        self.weights_proj = nn.Linear(args.hidden_size, self.n_heads, bias=False)
        at = 4 * args.head_dim  # behind the rows of the attention's own compressor
        self.compressor = Compressor(args, ratio, self.head_dim, at, DeepseekV4Cache.INDEX_ENTRIES)

    def queries(self, x: mx.array, q_lora: mx.array, step: Step) -> tuple[mx.array, mx.array]:
        """Queries [B, S, heads, dims] and the float32 weights of their heads [B, S, 1, heads].

        The weights are not scaled by (heads * dims) ** -0.5, which has no part in the choice.
        """
        q = self.wq_b(q_lora).reshape(*x.shape[:2], self.n_heads, self.head_dim)
        weights = self.weights_proj(x).astype(mx.float32)
        return _turned(q, step.index_rotations, step.dtype, step.dtype), weights[:, :, None]

    def select(self, q: mx.array, weights: mx.array, entries: mx.array, visible: mx.array | None) -> mx.array:
        """Indices [B, S, topk] of the entries [B, T, dims]; those that a query does not see come last.

        A query sees as many as `visible` [1 or B, S] says, or all. Products have the entries' dtype.
        """
        batch, length, heads, dims = q.shape
        products = q.reshape(batch, -1, dims).astype(entries.dtype) @ entries.swapaxes(-1, -2)
        order = (weights @ _negative_relu(products).reshape(batch, length, heads, -1)).squeeze(2)
        if visible is not None:
            order = mx.where(mx.arange(entries.shape[1]) < visible[..., None], order, mx.inf)
        # A full sort keeps entries of equal score in order, so the choice does not depend on how many there are;
        # argpartition does not. On a CPU the sort takes a thirtieth of the scores' time, from 4,000 entries to 262,000.
        return mx.argsort(order, axis=-1)[..., : self.topk]


@partial(mx.compile, shapeless=True)
def _negative_relu(x: mx.array) -> mx.array:
    return mx.minimum(-x.astype(mx.float32), 0)


def _grouped_linear(linear: nn.Linear | nn.QuantizedLinear, x: mx.array) -> mx.array:
    """[B, S, G * R] of x [B, S, G, I] with weight [G * R, I]: each group of R rows meets its own group of x."""
    batch, length, groups, dims = x.shape
    x = x.reshape(-1, groups, dims).swapaxes(0, 1)  # [G, B * S, I]

    def grouped(array: mx.array) -> mx.array:
        return array.reshape(groups, -1, array.shape[-1])

    if isinstance(linear, nn.QuantizedLinear):
        biases = linear.get("biases")
        y = mx.quantized_matmul(
            x,
            grouped(linear.weight),
            grouped(linear.scales),
            None if biases is None else grouped(biases),
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    else:
        y = x @ grouped(linear.weight).swapaxes(-1, -2)
    return y.swapaxes(0, 1).reshape(batch, length, -1)


class Attention(nn.Module):
    """One key, which is the value too, for all heads; its rotation is undone on the output."""

    def __init__(self, args: ModelArgs, layer_idx: int):
        super().__init__()
        self.n_heads = args.num_attention_heads
        self.head_dim = args.head_dim
        self.o_groups = args.o_groups
        self.window = args.sliding_window
        self.eps = args.rms_norm_eps
        self.ratio = args.compress_ratios[layer_idx]
        self.wq_a = nn.Linear(args.hidden_size, args.q_lora_rank, bias=False)
        self.q_norm = nn.RMSNorm(args.q_lora_rank, eps=args.rms_norm_eps)
        self.wq_b = nn.Linear(args.q_lora_rank, self.n_heads * self.head_dim, bias=False)
        self.wkv = nn.Linear(args.hidden_size, self.head_dim, bias=False)
        self.kv_norm = nn.RMSNorm(self.head_dim, eps=args.rms_norm_eps)
        self.attn_sink = mx.zeros((self.n_heads,))
        self.wo_a = nn.Linear(
            self.n_heads * self.head_dim // self.o_groups, self.o_groups * args.o_lora_rank, bias=False
        )
        self.wo_b = nn.Linear(self.o_groups * args.o_lora_rank, args.hidden_size, bias=False)
        if self.ratio:
            self.compressor = Compressor(args, self.ratio, self.head_dim, 0, DeepseekV4Cache.ENTRIES)
        if _overlaps(self.ratio):
            self.indexer = Indexer(args, self.ratio)

        self._projections, self._compressors = Stack(), Stack(mx.float32)

    def join(self) -> None:
        """Join the weights that meet the same input."""
        self._projections.join([self.wq_a, self.wkv])
        if self.ratio:
            self._compressors.join(self._compressing())

    def _compressing(self) -> list[Linear]:
        """The layers that make the cache's rows, in order."""
        compressors = [self.compressor, *([self.indexer.compressor] if "indexer" in self else [])]
        return [layer for each in compressors for layer in (each.wkv, each.wgate)]

    def project(self, x: mx.array, exact: mx.array, rotations: Rotations) -> list[mx.array]:
        """What x [B, S, C], which is `exact` too, in float32, is multiplied to before anything is remembered.

        Returns:
            The rank of the queries [B, S, q_lora_rank], queries [B, S, H, D] and keys [B, S, D] in float32, and the
            compressors' rows if there are compressors.
        """
        batch, length, _ = x.shape
        q_lora, kv = mx.split(self._projections(x, [self.wq_a, self.wkv]), [self.q_norm.weight.size], axis=-1)
        q_lora = self.q_norm(q_lora)
        q = self.wq_b(q_lora).reshape(batch, length, self.n_heads, self.head_dim)
        q = _turned(q, rotations.query, mx.float32, mx.float32, eps=self.eps)
        # Rounded like the entries, but kept in float32: the window is small, and read in full at every step.
        kv = _turned(kv, rotations.key, x.dtype, mx.float32, norm=self.kv_norm)
        rows = [self._compressors(exact, self._compressing())] if self.ratio else []
        return [q_lora, q, kv, *rows]

    def attend(self, x: mx.array, projected: list[mx.array], step: Step, cache: DeepseekV4Cache) -> mx.array:
        """[B, S, H, D] of what `project` made of x, and of what is remembered."""
        q_lora, q, kv, *rows = projected
        keys = cache.push(cache.WINDOW, kv, self.window - 1)
        parts, width = self._compressed(x, q_lora, rows, step, cache)
        slices = [
            _attend(q[:, lo:hi], [self._windowed(keys, step, lo, hi), *parts(lo, hi)], self.attn_sink)
            for lo, hi in _slices(q.shape[1], self.window, len(q) * width)
        ]
        return slices[0] if len(slices) == 1 else mx.concatenate(slices, axis=1)

    def output(self, out: mx.array, rotations: Rotations, dtype: mx.Dtype) -> mx.array:
        """[B, S, C] of attention's output."""
        out = _turned(out, rotations.output, dtype, dtype)
        return self.wo_b(_grouped_linear(self.wo_a, out.reshape(*out.shape[:2], self.o_groups, -1)))

    def _windowed(self, keys: mx.array, step: Step, lo: int, hi: int) -> Part:
        """The part of keys [B, W - 1 + S, D] that the queries lo to hi see, in blocks of at most W queries."""
        batch, rows, dims = keys.shape
        if rows == self.window and _uniform(step.first):
            return keys[:, None, max(self.window - 1 - step.first[0], 0) :], None
        size = min(hi - lo, self.window)
        shape = (batch, (hi - lo) // size, self.window - 1 + size, dims)
        blocks = mx.as_strided(keys, shape, (rows * dims, size * dims, dims, 1), lo * dims)
        return blocks, step.window_mask(lo, hi)

    def _compressed(
        self, x: mx.array, q_lora: mx.array, rows: list[mx.array], step: Step, cache: DeepseekV4Cache
    ) -> tuple[Callable[[int, int], list[Part]], int]:
        """A function that gives the parts of compressed entries for the queries lo to hi, and floats a query needs."""
        width = self.n_heads * 2 * self.window
        if not self.ratio:
            return lambda lo, hi: [], width
        windows = step.windows[self.ratio]
        t = windows.entries
        all_rows = cache.push(cache.ROWS, rows[0], windows.span - 1)
        entries = self.compressor(all_rows, step, cache)
        index_entries = self.indexer.compressor(all_rows, step, cache) if "indexer" in self else None
        if entries is None or t == 0:
            return lambda lo, hi: [], width

        if index_entries is None or t <= self.indexer.topk:
            keys = entries[:, None, :t].astype(mx.float32)

            def every(lo: int, hi: int) -> list[Part]:
                if windows.all_visible:
                    return [(keys, None)]
                mask = mx.arange(t) < windows.visible[:, lo:hi, None]
                return [(keys, mask[:, None, :, None])]

            return every, width + self.n_heads * t

        index_q, weights = self.indexer.queries(x, q_lora, step)
        index_keys = index_entries[:, :t]

        def chosen(lo: int, hi: int) -> list[Part]:
            visible = None if windows.all_visible else windows.visible[:, lo:hi]
            index = self.indexer.select(index_q[:, lo:hi], weights[:, lo:hi], index_keys, visible)
            mask = None if visible is None else (index < visible[..., None])[:, :, None, None]
            return [(_entries_at(entries, index).astype(mx.float32), mask)]

        return chosen, max(width + self.indexer.topk * (self.n_heads + self.head_dim), self.indexer.n_heads * t)


def _entries_at(entries: mx.array, index: mx.array) -> mx.array:
    """[B, S, k, D] of entries [B, T, D] at index [B, S, k]."""
    if len(entries) > 1:
        index = index + mx.arange(len(entries))[:, None, None] * entries.shape[1]
    return entries.flatten(0, 1)[index]


def _sinkhorn(comb: mx.array, eps: float, iterations: int) -> mx.array:
    """Positive matrices [B, S, M, M] made to have columns, and nearly rows, that sum to 1 (Sinkhorn-Knopp)."""
    # Tokens last, so that the inner loops are long.
    comb = mx.contiguous(comb.transpose(2, 3, 0, 1))
    comb = comb / (comb.sum(axis=0, keepdims=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(axis=1, keepdims=True) + eps)
        comb = comb / (comb.sum(axis=0, keepdims=True) + eps)
    return comb.transpose(2, 3, 0, 1)


_compiled_sinkhorn = mx.compile(_sinkhorn, shapeless=True)


def _balanced(comb: mx.array, eps: float, iterations: int) -> mx.array:
    # Compiled without shapes, MLX 0.32 crashes on a sum along an axis of one.
    balance = _sinkhorn if comb.shape[-1] == 1 else _compiled_sinkhorn
    return balance(comb, eps, iterations)


def _mix(
    mixes: mx.array, scale: mx.array, base: mx.array, m: int, eps: float, iterations: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Weights of the streams in the block's input [B, S, M], of its output in the streams [B, S, M], and of the
    streams in each other [B, S, M, M], from mixes [B, S, (2 + M) * M]; all float32."""
    pre, post, comb = mx.split(mixes, [m, 2 * m], axis=-1)
    pre = mx.sigmoid(pre * scale[0] + base[:m]) + eps
    post = 2 * mx.sigmoid(post * scale[1] + base[m : 2 * m])
    comb = (comb * scale[2] + base[2 * m :]).reshape(*comb.shape[:2], m, m)
    return pre, post, _balanced(mx.softmax(comb, axis=-1) + eps, eps, iterations)


# What HyperConnection does after its product, for a token: the mix is a thread's alone, and too little to be shared.
_MIX_SOURCE = """
    const int first = row * (2 + M) * M;
    float c[M * M];
    for (int i = 0; i < M; ++i) {
        mixed[i] = 1.0f / (1.0f + exp(-(mixes[first + i] * norm * scale[0] + base[i]))) + eps[0];
        post[row * M + i] = 2.0f / (1.0f + exp(-(mixes[first + M + i] * norm * scale[1] + base[M + i])));
        float top = -INFINITY;
        for (int j = 0; j < M; ++j) {
            const int k = (2 + i) * M + j;
            c[i * M + j] = mixes[first + k] * norm * scale[2] + base[k];
            top = c[i * M + j] > top ? c[i * M + j] : top;
        }
        float sum = 0.0f;
        for (int j = 0; j < M; ++j) {
            c[i * M + j] = exp(c[i * M + j] - top);
            sum += c[i * M + j];
        }
        for (int j = 0; j < M; ++j) {
            c[i * M + j] = c[i * M + j] / sum + eps[0];
        }
    }
    for (int step = 0; step < 2 * ITERATIONS - 1; ++step) {
        const int along = step % 2 == 0 ? M : 1;  // columns, rows, columns, ...
        const int across = step % 2 == 0 ? 1 : M;
        for (int i = 0; i < M; ++i) {
            float sum = eps[0];
            for (int j = 0; j < M; ++j) {
                sum += c[i * across + j * along];
            }
            const float share = 1.0f / sum;
            for (int j = 0; j < M; ++j) {
                c[i * across + j * along] *= share;
            }
        }
    }
    for (int i = 0; i < M * M; ++i) {
        comb[row * M * M + i] = c[i];
    }
"""
_ENTER_KERNEL = Kernel(
    "enter",
    ["streams", "mixes", "scale", "base", "weight", "eps"],
    ["out", "exact", "post", "comb"],
    """
    SHARED float mixed[M];
    const unsigned int of_token = row * M * C;
    float squares = 0.0f;
    for (unsigned int i = lane; i < M * C; i += THREADS) {
        squares += streams[of_token + i] * streams[of_token + i];
    }
    SUM_OVER_THREADS(squares);
    if (lane == 0) {
        const float norm = 1.0f / sqrt(partial[0] / (M * C) + eps[1]);
"""
    + _MIX_SOURCE
    + """
    }
    BARRIER;
    squares = 0.0f;
    for (unsigned int i = lane; i < C; i += THREADS) {
        float value = 0.0f;
        for (int m = 0; m < M; ++m) value += mixed[m] * streams[of_token + m * C + i];
        squares += value * value;
    }
    SUM_OVER_THREADS(squares);
    const float level = 1.0f / sqrt(partial[0] / C + eps[2]);
    for (unsigned int i = lane; i < C; i += THREADS) {
        float value = 0.0f;
        for (int m = 0; m < M; ++m) value += mixed[m] * streams[of_token + m * C + i];
        out[row * C + i] = static_cast<T>(value * level * static_cast<float>(weight[i]));
        exact[row * C + i] = static_cast<float>(out[row * C + i]);
    }
""",
)


def _expand(x: mx.array, streams: mx.array, post: mx.array, comb: mx.array) -> mx.array:
    """Streams [B, S, M, C] after a block with output x [B, S, C]; comb[j, k] is the weight of stream j in stream k."""
    m = post.shape[-1]
    rows = mx.split(comb.swapaxes(-1, -2), m, axis=-1)  # [B, S, M, 1] each, what stream j gives to all
    return _weighted_sum([*mx.split(streams, m, axis=2)], [*rows], x[:, :, None], post[..., None])


@partial(mx.compile, shapeless=True)
def _weighted_sum(streams: list[mx.array], weights: list[mx.array], x: mx.array, post: mx.array) -> mx.array:
    return reduce(mx.add, (weight * stream for weight, stream in zip(weights, streams, strict=True)), post * x)


def _collapse(streams: mx.array, weights: mx.array) -> mx.array:
    """[B, S, C] of streams [B, S, M, C] and their weights [B, S, M]."""
    return (weights[:, :, None] @ streams).squeeze(2)


class HyperConnection(nn.Module):
    """How M residual streams, which are float32, make a block's input, and its output and they the streams after it."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.m = args.hc_mult
        self.iterations = args.hc_sinkhorn_iters
        self.eps = args.hc_eps
        self.norm_eps = args.rms_norm_eps
        rows = (2 + self.m) * self.m
        self.fn = mx.zeros((rows, self.m * args.hidden_size))
        self.base = mx.zeros((rows,))
        self.scale = mx.ones((3,))

    def __call__(
        self, streams: mx.array, norm: nn.RMSNorm, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """The block's normalised input [B, S, C] in a dtype, the same in float32, and what `_expand` needs."""
        if not _runs_kernels():
            mixes = mx.fast.rms_norm(streams.flatten(2), None, self.norm_eps) @ self.fn.T
            pre, post, comb = _mix(mixes, self.scale, self.base, self.m, self.eps, self.iterations)
            x = norm(_collapse(streams, pre)).astype(dtype)
            return x, x.astype(mx.float32), post, comb
        batch, length, m, dims = streams.shape
        x, exact, post, comb = _ENTER_KERNEL(
            [
                streams,
                streams.flatten(2) @ self.fn.T,
                self.scale,
                self.base,
                norm.weight,
                _constants(self.eps, self.norm_eps, norm.eps),
            ],
            [
                ((batch, length, dims), dtype),
                ((batch, length, dims), mx.float32),
                ((batch, length, m), mx.float32),
                ((batch, length, m, m), mx.float32),
            ],
            rows=batch * length,
            threads=_threads(dims // 4),
            M=m,
            C=dims,
            ITERATIONS=self.iterations,
            T=dtype,
        )
        return x, exact, post, comb


class HyperHead(nn.Module):
    """How the residual streams make one after the last layer."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.eps = args.hc_eps
        self.norm_eps = args.rms_norm_eps
        self.fn = mx.zeros((args.hc_mult, args.hc_mult * args.hidden_size))
        self.base = mx.zeros((args.hc_mult,))
        self.scale = mx.ones((1,))

    def __call__(self, streams: mx.array) -> mx.array:
        mixes = mx.fast.rms_norm(streams.flatten(2), None, self.norm_eps) @ self.fn.T
        return _collapse(streams, mx.sigmoid(mixes * self.scale + self.base) + self.eps)


@partial(mx.compile, shapeless=True)
def _limited_swiglu(gate: mx.array, up: mx.array, limit: mx.array) -> mx.array:
    return nn.silu(mx.minimum(gate, limit)) * mx.clip(up, -limit, limit)


class LimitedSwiGLU(nn.Module):
    """SwiGLU of a gate of at most `limit` and an input within +-limit."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def __call__(self, up: mx.array, gate: mx.array) -> mx.array:
        return _limited_swiglu(gate, up, mx.array(self.limit, gate.dtype))


class MLP(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        dims = args.moe_intermediate_size  # whatever n_shared_experts says, as in transformers
        self.gate_proj = nn.Linear(args.hidden_size, dims, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, dims, bias=False)
        self.down_proj = nn.Linear(dims, args.hidden_size, bias=False)
        self.activation = LimitedSwiGLU(args.swiglu_limit)
        self._inner = Stack()

    def join(self) -> None:
        """Join the weights that meet the same input."""
        self._inner.join([self.gate_proj, self.up_proj])

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self._inner(x, [self.gate_proj, self.up_proj]), 2, axis=-1)
        return self.down_proj(self.activation(up, gate))


@partial(mx.compile, shapeless=True)
def _sqrt_softplus(x: mx.array) -> mx.array:
    return mx.sqrt(nn.softplus(x))


# By scoring_func. Softmax has no agreed meaning: transformers lists it and fails on it.
_SCORES: dict[str, Callable[[mx.array], mx.array]] = {"sqrtsoftplus": _sqrt_softplus, "sigmoid": mx.sigmoid}


def _combine(routed: mx.array, weights: mx.array, shared: mx.array) -> mx.array:
    """[B, S, C] of the routed experts' outputs [B, S, topk, C], their weights, and the shared expert's output."""
    topk = weights.shape[-1]
    if topk > _MOST_TERMS or not _runs_kernels():
        # A product, not a sum: topk may be 1 (see _balanced), and on a CPU long prompts are faster.
        return _add_product(routed, weights, shared)
    outputs, shares = mx.split(routed, topk, axis=2), mx.split(weights[..., None], topk, axis=2)
    return _add_terms([*outputs], [*shares], shared[:, :, None]).squeeze(2)


# mx.compile makes one kernel of at most 24 arrays.
_MOST_TERMS = 10


@partial(mx.compile, shapeless=True)
def _add_product(routed: mx.array, weights: mx.array, shared: mx.array) -> mx.array:
    routed = mx.expand_dims(weights, -2) @ routed.astype(mx.float32)
    return routed.squeeze(-2).astype(shared.dtype) + shared


@partial(mx.compile, shapeless=True)
def _add_terms(outputs: list[mx.array], weights: list[mx.array], shared: mx.array) -> mx.array:
    routed = reduce(mx.add, (weight * out for weight, out in zip(weights, outputs, strict=True)))
    return routed.astype(shared.dtype) + shared


@partial(mx.compile, shapeless=True)
def _normalised(weights: mx.array, total: mx.array, scaling: mx.array) -> mx.array:
    return weights / (total + 1e-20) * scaling


@partial(mx.compile, shapeless=True)
def _biased(scores: mx.array, bias: mx.array) -> mx.array:
    return -(scores + bias)


class Gate(nn.Module):
    """Routes tokens to experts: the first layers by token id, the others by score."""

    def __init__(self, args: ModelArgs, layer_idx: int):
        super().__init__()
        self.topk = args.num_experts_per_tok
        self.scoring_func = args.scoring_func
        self.scaling = args.routed_scaling_factor
        self.weight = mx.zeros((args.n_routed_experts, args.hidden_size))
        if layer_idx < args.num_hash_layers:
            self.tid2eid = mx.zeros((args.vocab_size, self.topk), mx.int32)
        else:
            self.e_score_correction_bias = mx.zeros((args.n_routed_experts,))

    def __call__(self, x: mx.array, inputs: mx.array) -> tuple[mx.array, mx.array]:
        """Experts [B, S, topk] of each token and their weights in float32."""
        logits = x.astype(mx.float32) @ self.weight.T
        scores = _SCORES[self.scoring_func](logits)
        if "tid2eid" in self:
            experts = self.tid2eid[inputs]
        else:
            # The bias has a say in which experts are chosen, not in their weights.
            order = _biased(scores, self.e_score_correction_bias)
            experts = mx.argpartition(order, self.topk - 1, axis=-1)[..., : self.topk]
        weights = mx.take_along_axis(scores, experts, axis=-1)
        # Whatever norm_topk_prob says, as in transformers.
        return experts, _normalised(weights, weights.sum(axis=-1, keepdims=True), mx.array(self.scaling))


# Rows of a block: what CUDA's products take at once.
_BLOCK_ROWS = 64


def _needs_blocks() -> bool:
    """Whether rows of one expert must stand together to be multiplied at once.

    CUDA's gather_qmm reads the weight again for each row: 2,048 tokens of V4-Flash take 20 times as long as in blocks.
    """
    return _runs_kernels() and mx.cuda.is_available()


class Blocks:
    """Rows of the same expert side by side, in blocks of _BLOCK_ROWS of which the last of an expert is filled up.

    There are at most N // _BLOCK_ROWS + E blocks for N rows and E experts, however they are routed.

    Args:
        experts: Of each row, [N].
        count: How many experts there are, E.
    """

    def __init__(self, experts: mx.array, count: int):
        rows, size = len(experts), _BLOCK_ROWS
        blocks = rows // size + min(count, rows)
        order = mx.argsort(experts)
        held = mx.zeros((count,), mx.int32).at[experts].add(1)
        ends = mx.cumsum(-(-held // size))  # of each expert, in blocks
        ranks = mx.arange(rows) - (mx.cumsum(held) - held)[experts[order]]
        # Where each row goes, and which row is where; where none is, the first, whose products nobody reads.
        places = (ends - -(-held // size))[experts[order]] * size + ranks
        self.places = mx.zeros((rows,), mx.int32).at[order].add(places)
        self.rows = mx.zeros((blocks * size,), mx.int32).at[places].add(order.astype(mx.int32))
        self.experts = mx.minimum((ends[:, None] <= mx.arange(blocks)).sum(axis=0), count - 1)


class Experts(SwitchGLU):
    """Routed experts; for long prompts in blocks where that is faster.

    Blocks take 64 * E rows more than the tokens have themselves: for V4-Flash at 2,048 tokens 29,000 rows of up to
    4,096 values instead of 12,000.
    """

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """Outputs [B, S, topk, C] for x [B, S, C] and experts [B, S, topk]."""
        if indices.size < 8 * _BLOCK_ROWS or not _needs_blocks():
            outputs: mx.array = super().__call__(x, indices)
            return outputs
        blocks = Blocks(indices.flatten(), self.gate_proj.weight.shape[0])
        rows = x.flatten(0, -2)[blocks.rows // indices.shape[-1]].reshape(-1, _BLOCK_ROWS, x.shape[-1])
        inner = self.activation(self.up_proj(rows, blocks.experts), self.gate_proj(rows, blocks.experts))
        return self.down_proj(inner, blocks.experts).flatten(0, 1)[blocks.places].reshape(*indices.shape, -1)


class MoE(nn.Module):
    def __init__(self, args: ModelArgs, layer_idx: int):
        super().__init__()
        self.gate = Gate(args, layer_idx)
        self.switch_mlp = Experts(
            args.hidden_size,
            args.moe_intermediate_size,
            args.n_routed_experts,
            activation=LimitedSwiGLU(args.swiglu_limit),
        )
        self.shared_experts = MLP(args)
        self.sharding_group: mx.distributed.Group | None = None

    def __call__(self, x: mx.array, exact: mx.array, inputs: mx.array) -> mx.array:
        """[B, S, C] of x [B, S, C], which is `exact` too, in float32, and of the token ids."""
        experts, weights = self.gate(exact, inputs)
        out = _combine(self.switch_mlp(x, experts), weights, self.shared_experts(x))
        if self.sharding_group is not None:
            out = mx.distributed.all_sum(out, group=self.sharding_group)
        return out


class DecoderLayer(nn.Module):
    def __init__(self, args: ModelArgs, layer_idx: int):
        super().__init__()
        self.attn_hc = HyperConnection(args)
        self.attn_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.attn = Attention(args, layer_idx)
        self.ffn_hc = HyperConnection(args)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.ffn = MoE(args, layer_idx)
        self._compiled: Compiled | None = None

    def __call__(self, streams: mx.array, inputs: mx.array, step: Step, cache: DeepseekV4Cache) -> mx.array:
        before, after = self._parts(inputs.shape[1])
        rotations = step.rotations if self.attn.ratio else step.plain_rotations
        x, post, comb, projected = before(streams, step.like, rotations)
        out = self.attn.attend(x, projected, step, cache)
        return after(out, streams, post, comb, step.like, rotations, inputs)

    def _before(self, streams: mx.array, like: mx.array, rotations: Rotations) -> Any:
        x, exact, post, comb = self.attn_hc(streams, self.attn_norm, like.dtype)
        return x, post, comb, self.attn.project(x, exact, Rotations(*rotations))

    def _after(
        self,
        out: mx.array,
        streams: mx.array,
        post: mx.array,
        comb: mx.array,
        like: mx.array,
        rotations: Rotations,
        inputs: mx.array,
    ) -> mx.array:
        x = self.attn.output(out, Rotations(*rotations), like.dtype)
        streams = _expand(x, streams, post, comb)
        x, exact, post, comb = self.ffn_hc(streams, self.ffn_norm, like.dtype)
        return _expand(self.ffn(x, exact, inputs), streams, post, comb)

    def _parts(self, length: int) -> "Compiled":
        """What comes before what is remembered, and what comes after it.

        On a GPU Python takes as long to name a token's operations as the GPU to do them, so for single tokens they are
        named once, and again whenever the model is told that it is evaluated.
        """
        if length > 1 or self.training or self.ffn.sharding_group is not None or not _compiles():
            return self._before, self._after
        if self._compiled is None:
            self._compiled = mx.compile(self._before), mx.compile(self._after)
        return self._compiled

    def forget(self) -> None:
        """The weights may be others now."""
        self._compiled = None


Compiled = tuple[Callable[..., Any], Callable[..., mx.array]]


class DeepseekV4Model(PipelineMixin, nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.hc_head = HyperHead(args)
        dims, longest = args.qk_rope_head_dim, args.max_position_embeddings
        self._ropes = Ropes(
            Rope(dims, args.rope_theta, None, longest),
            Rope(dims, args.compress_rope_theta, args.rope_scaling, longest),
        )

    def __call__(self, inputs: mx.array, cache: list[DeepseekV4Cache]) -> mx.array:
        batch, length = inputs.shape
        h = self.embed_tokens(inputs)
        if mx.default_device() == mx.cpu:
            # MLX's matrix products are up to ten times faster on a CPU with float32 than with bfloat16 activations.
            h = h.astype(mx.float32)
        step = Step(self.args, self._ropes, cache[0], length, h.dtype)
        streams = mx.repeat(h[:, :, None].astype(mx.float32), self.args.hc_mult, axis=2)
        rank, size = self.pipeline_rank, self.pipeline_size
        if rank < size - 1:
            streams = mx.distributed.recv_like(streams, rank + 1)
        for layer, layer_cache in zip(self.pipeline_layers, cache, strict=True):
            streams = layer(streams, inputs, step, layer_cache)
            layer_cache.advance(length)
        if rank > 0:
            streams = mx.distributed.send(streams, rank - 1)
            # Prefill evaluates nothing but the cache, and has to send all the same.
            last = cache[-1]
            last.arrays = [None if array is None else mx.depends(array, streams) for array in last.arrays]
        # Nothing reads the rows of an open window: without this they would pile up as graphs that are never run.
        streams = mx.depends(streams, [array for c in cache for array in c.arrays if array is not None])
        h = self.hc_head(streams)
        if size > 1:
            h = mx.distributed.all_gather(h)[:batch]  # of rank 0, which has the last layers
        return self.norm(h).astype(step.dtype)


class Model(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = DeepseekV4Model(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Logits [B, S, vocab_size] of token ids [B, S]."""
        cache = self.make_cache() if cache is None else self.own_cache(cache)
        for layer_cache in cache:
            if layer_cache.empty() and len(layer_cache.offset) == 1:
                layer_cache.offset *= inputs.shape[0]
        h = self.model(inputs, cache)
        return self.model.embed_tokens.as_linear(h) if self.args.tie_word_embeddings else self.lm_head(h)

    def load_weights(self, file_or_weights: str | list[tuple[str, mx.array]], strict: bool = True) -> "Model":
        super().load_weights(file_or_weights, strict)
        for layer in self.layers:
            layer.attn.join()
            layer.ffn.shared_experts.join()
            layer.forget()
        return self

    def train(self, mode: bool = True) -> "Model":
        super().train(mode)
        for layer in self.layers:
            layer.forget()
        return self

    def own_cache(self, cache: list[Any]) -> list[DeepseekV4Cache]:
        """The same list, changed: what `load_prompt_cache` read has become this model's cache."""
        cache[:] = map(DeepseekV4Cache.own, cache)
        return cache

    @property
    def layers(self) -> list[DecoderLayer]:
        return self.model.pipeline_layers

    def make_cache(self) -> list[DeepseekV4Cache]:
        return [DeepseekV4Cache(layer.attn.ratio) for layer in self.layers]

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Tensor parallelism: a rank keeps whole heads and output groups, and a part of every expert."""
        group = group or mx.distributed.init()
        rank, size = group.rank(), group.size()
        if self.args.num_attention_heads % size or self.args.o_groups % size:
            raise ValueError(
                f"{self.args.num_attention_heads} heads and {self.args.o_groups} output groups cannot be shared evenly "
                f"among {size} ranks."
            )
        for layer in self.layers:
            attn, ffn = layer.attn, layer.ffn
            attn.n_heads //= size
            attn.o_groups //= size
            attn.attn_sink = attn.attn_sink[rank * attn.n_heads : (rank + 1) * attn.n_heads]
            shard_inplace(attn.wq_b, "all-to-sharded", group=group)
            shard_inplace(attn.wo_a, "all-to-sharded", group=group)
            attn.wo_b = shard_linear(attn.wo_b, "sharded-to-all", group=group)
            ffn.sharding_group = group
            for mlp in (ffn.switch_mlp, ffn.shared_experts):
                shard_inplace(mlp.gate_proj, "all-to-sharded", group=group)
                shard_inplace(mlp.up_proj, "all-to-sharded", group=group)
                shard_inplace(mlp.down_proj, "sharded-to-all", group=group)

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """Whether a parameter may be stored in fewer bits than float32."""
        exact = re.compile(r".*(_hc|hc_head)\.(fn|base|scale)|.*\.(attn_sink|ape|e_score_correction_bias)")
        return lambda name: exact.fullmatch(name) is None

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights under this module's names, from a converted or from the published checkpoint."""
        if any(re.fullmatch(r"embed\.weight|layers\..*", name) for name in weights):
            blocks = (self.args.quantization_config or {}).get("weight_block_size", [128, 128])
            weights = _from_published(weights, blocks)
            self._quantize_as(weights)
        return {new: array for name, array in weights.items() for new, array in [_current(name, array)]}

    def _quantize_as(self, weights: dict[str, mx.array]) -> None:
        """Make quantized modules of those whose published weights are: config.json says nothing that MLX knows."""

        def mode(path: str, module: nn.Module) -> bool | dict[str, Any]:
            scales = weights.get(f"{path}.scales")
            if scales is None or not hasattr(module, "to_quantized"):
                return False
            bits = 32 * weights[f"{path}.weight"].shape[-1] // module.weight.shape[-1]
            return {"group_size": 32, "bits": bits, "mode": f"mxfp{bits}"}

        nn.quantize(self, class_predicate=mode)


# Published tensor name -> parameter of this module.
#
# An ordered tuple of (pattern, replacement). A pattern is matched with re.fullmatch against the whole published
# name, the first match wins, and match.expand(replacement) is the parameter's name. A name that no pattern
# matches belongs to a part that this model does not have (the MTP stages) and is dropped.
#
# Groups, all of them named:
#   layer   decoder layer index.
#   expert  routed expert index. Present in the patterns of routed experts and nowhere else; the replacement does
#           not mention it, because the E experts of a projection are stacked along a new first axis, in order.
#   param   "weight" or "scale", in the patterns of the tensors that are published in FP8 or FP4. "scale" is the
#           block scale of the "weight" beside it, not a parameter. Patterns without this group name parameters
#           only: the `scale` of a hyper-connection is one.
#
# A pure literal: tools read it with ast.literal_eval, without importing this file.
PUBLISHED_NAMES = (
    (r"embed\.weight", r"model.embed_tokens.weight"),
    (r"hc_head_fn", r"model.hc_head.fn"),
    (r"hc_head_base", r"model.hc_head.base"),
    (r"hc_head_scale", r"model.hc_head.scale"),
    (r"norm\.weight", r"model.norm.weight"),
    (r"head\.(?P<param>weight|scale)", r"lm_head.\g<param>"),
    (r"layers\.(?P<layer>\d+)\.attn_norm\.weight", r"model.layers.\g<layer>.attn_norm.weight"),
    (r"layers\.(?P<layer>\d+)\.ffn_norm\.weight", r"model.layers.\g<layer>.ffn_norm.weight"),
    (r"layers\.(?P<layer>\d+)\.hc_attn_fn", r"model.layers.\g<layer>.attn_hc.fn"),
    (r"layers\.(?P<layer>\d+)\.hc_attn_base", r"model.layers.\g<layer>.attn_hc.base"),
    (r"layers\.(?P<layer>\d+)\.hc_attn_scale", r"model.layers.\g<layer>.attn_hc.scale"),
    (r"layers\.(?P<layer>\d+)\.hc_ffn_fn", r"model.layers.\g<layer>.ffn_hc.fn"),
    (r"layers\.(?P<layer>\d+)\.hc_ffn_base", r"model.layers.\g<layer>.ffn_hc.base"),
    (r"layers\.(?P<layer>\d+)\.hc_ffn_scale", r"model.layers.\g<layer>.ffn_hc.scale"),
    (r"layers\.(?P<layer>\d+)\.attn\.attn_sink", r"model.layers.\g<layer>.attn.attn_sink"),
    (
        r"layers\.(?P<layer>\d+)\.attn\.(?P<norm>q_norm|kv_norm)\.weight",
        r"model.layers.\g<layer>.attn.\g<norm>.weight",
    ),
    (
        r"layers\.(?P<layer>\d+)\.attn\.(?P<linear>wq_a|wq_b|wkv|wo_a|wo_b)\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.attn.\g<linear>.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.attn\.(?P<owner>compressor|indexer\.compressor)\.ape",
        r"model.layers.\g<layer>.attn.\g<owner>.ape",
    ),
    (
        r"layers\.(?P<layer>\d+)\.attn\.(?P<owner>compressor|indexer\.compressor)\.norm\.weight",
        r"model.layers.\g<layer>.attn.\g<owner>.norm.weight",
    ),
    (
        r"layers\.(?P<layer>\d+)\.attn\.(?P<owner>compressor|indexer\.compressor)\.(?P<linear>wkv|wgate)"
        r"\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.attn.\g<owner>.\g<linear>.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.attn\.indexer\.(?P<linear>wq_b|weights_proj)\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.attn.indexer.\g<linear>.\g<param>",
    ),
    (r"layers\.(?P<layer>\d+)\.ffn\.gate\.weight", r"model.layers.\g<layer>.ffn.gate.weight"),
    (r"layers\.(?P<layer>\d+)\.ffn\.gate\.bias", r"model.layers.\g<layer>.ffn.gate.e_score_correction_bias"),
    (r"layers\.(?P<layer>\d+)\.ffn\.gate\.tid2eid", r"model.layers.\g<layer>.ffn.gate.tid2eid"),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.experts\.(?P<expert>\d+)\.w1\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.switch_mlp.gate_proj.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.experts\.(?P<expert>\d+)\.w2\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.switch_mlp.down_proj.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.experts\.(?P<expert>\d+)\.w3\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.switch_mlp.up_proj.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.shared_experts\.w1\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.shared_experts.gate_proj.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.shared_experts\.w2\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.shared_experts.down_proj.\g<param>",
    ),
    (
        r"layers\.(?P<layer>\d+)\.ffn\.shared_experts\.w3\.(?P<param>weight|scale)",
        r"model.layers.\g<layer>.ffn.shared_experts.up_proj.\g<param>",
    ),
)


def _current(name: str, array: mx.array) -> tuple[str, mx.array]:
    """A converted checkpoint's name and array as this module has them, whichever publisher wrote it."""
    name = re.sub(r"\.hc_(attn|ffn)\.", r".\1_hc.", name)
    if ".attn.wo_a." in name and array.ndim == 3:
        array = array.flatten(0, 1)
    elif name.endswith(".tid2eid"):
        array = array.astype(mx.int32)
    elif re.search(r"compressor\.(wkv\.weight|wgate\.weight|ape)$|ffn\.gate\.weight$", name):
        # These meet float32; in bfloat16 they would be converted at every call.
        array = array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
    return name, array


def _from_published(weights: dict[str, mx.array], fp8_block: list[int]) -> dict[str, mx.array]:
    """The published checkpoint under this module's names, FP4 and FP8 repacked without loss as mxfp4 and mxfp8."""
    named: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = {}
    for source, array in weights.items():
        match, target = _published_name(source)
        if match is None:
            continue
        groups = match.groupdict()
        if groups.get("param") == "scale":
            target += "s"  # block scales: MLX has them as `scales`
        if "expert" in groups:
            experts.setdefault(target, {})[int(groups["expert"])] = array
        else:
            named[target] = array
    for target, arrays in experts.items():
        named[target] = mx.stack([arrays[expert] for expert in sorted(arrays)])
    for path in [name.removesuffix(".scales") for name in named if name.endswith(".scales")]:
        weight, scales = named[f"{path}.weight"], named[f"{path}.scales"]
        named[f"{path}.weight"], named[f"{path}.scales"] = _repacked(path, weight, scales, fp8_block)
    return named


def _published_name(name: str) -> tuple[re.Match[str] | None, str]:
    for pattern, replacement in PUBLISHED_NAMES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return match, match.expand(replacement)
    return None, name


def _repacked(path: str, weight: mx.array, scales: mx.array, fp8_block: list[int]) -> tuple[mx.array, mx.array]:
    """Words of MLX's mxfp4 or mxfp8 and their e8m0 bytes, one for 32 columns.

    FP4 [.., out, in / 2] comes as int8, two values a byte, with such scales already; FP8 [.., out, in] as uint8, with
    one scale for a block of so many rows and columns.
    """
    is_fp8 = weight.dtype == mx.uint8
    rows, columns = weight.shape[-2], weight.shape[-1] * (1 if is_fp8 else 2)
    height, width = fp8_block if is_fp8 else (1, 32)
    expected = (*weight.shape[:-2], -(-rows // height), -(-columns // width))
    if weight.dtype not in (mx.uint8, mx.int8) or scales.shape != expected or width % 32 or columns % 32:
        raise ValueError(
            f"{path}: {weight.dtype} {weight.shape} with scales {scales.shape}, expected FP8 or FP4 with scales "
            f"{expected}: one for each {height} x {width} values, in whole groups of 32 columns."
        )
    if is_fp8:
        scales = mx.repeat(mx.repeat(scales, height, axis=-2)[..., :rows, :], width // 32, axis=-1)
    return weight.view(mx.uint32), scales[..., : columns // 32]
