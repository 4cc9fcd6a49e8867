"""The shapes that DeepSeek-V4 comes in: the published releases, and small ones with every element of them."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleShape:
    """What decides a DeepSeek-V4 checkpoint's tensors; every field is the key of the same name in config.json.

    The layers' kinds stand in `compress_ratios`: 0 is sliding-window attention, 4 compressed sparse attention with an
    indexer, 128 heavily compressed attention. Entries beyond `num_hidden_layers` belong to the `mtp.*` stages.

    Attributes:
        expert_dtype: "fp4" stores the routed experts as packed nibbles, "fp8" like every other linear.
        dspark_target_layer_ids: Not empty: the `mtp.*` stages are a DSpark drafter, fed by these layers.
    """

    hidden_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    compress_ratios: tuple[int, ...]
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    vocab_size: int
    sliding_window: int
    max_position_embeddings: int
    num_hash_layers: int = 3
    hc_mult: int = 4
    num_nextn_predict_layers: int = 1
    routed_scaling_factor: float = 1.5
    swiglu_limit: float = 10.0
    expert_dtype: Literal["fp4", "fp8"] = "fp4"
    dspark_block_size: int = 5
    dspark_markov_rank: int = 0
    dspark_noise_token_id: int = 0
    dspark_target_layer_ids: tuple[int, ...] = ()

    @property
    def mtp_stages(self) -> int:
        """Blocks named `mtp.*`; the release of 0731 has three although `num_nextn_predict_layers` is 1 there."""
        return len(self.compress_ratios) - self.num_hidden_layers


FLASH = SampleShape(
    hidden_size=4096,
    moe_intermediate_size=2048,
    num_hidden_layers=43,
    compress_ratios=(0, 0, *(4, 128) * 20, 4, 0),
    num_attention_heads=64,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
    n_routed_experts=256,
    num_experts_per_tok=6,
    vocab_size=129280,
    sliding_window=128,
    max_position_embeddings=1048576,
)
"""deepseek-ai/DeepSeek-V4-Flash, revision 6e763230a9d263eca2023f1d4a5ce1bfe126cf48: 159,609,485,896 bytes."""

FLASH_0731 = replace(
    FLASH,
    compress_ratios=(*FLASH.compress_ratios, 0, 0),
    dspark_markov_rank=256,
    dspark_noise_token_id=128799,
    dspark_target_layer_ids=(40, 41, 42),
)
"""The Flash release of 0731, with its DSpark drafter: 166,878,536,440 bytes."""

FLASH_BASE = replace(FLASH, expert_dtype="fp8")
"""Flash before post-training: the same tensors with the experts in FP8."""

PRO = replace(
    FLASH,
    hidden_size=7168,
    moe_intermediate_size=3072,
    num_hidden_layers=61,
    compress_ratios=(128, 128, *(4, 128) * 29, 4, 0),
    num_attention_heads=128,
    q_lora_rank=1536,
    o_groups=16,
    index_topk=1024,
    n_routed_experts=384,
    routed_scaling_factor=2.5,
)
"""deepseek-ai/DeepSeek-V4-Pro: 864,704,792,696 bytes."""

TINY = SampleShape(
    hidden_size=256,
    moe_intermediate_size=128,
    num_hidden_layers=8,
    compress_ratios=(0, 0, 4, 128, 4, 128, 4, 128, 0),
    num_attention_heads=4,
    head_dim=64,
    qk_rope_head_dim=32,
    q_lora_rank=128,
    o_lora_rank=128,
    o_groups=2,
    index_n_heads=16,
    index_head_dim=64,
    index_topk=8,
    n_routed_experts=8,
    num_experts_per_tok=3,
    vocab_size=1536,
    sliding_window=16,
    max_position_embeddings=4096,
    swiglu_limit=2.0,
)
"""Every element of Flash in a few megabytes.

Each linear's rows divide into groups of 128. Forty tokens make the indexer drop entries, 128 fill a heavily compressed
one, YaRN's ramp lies within the rotated pairs, and the low `swiglu_limit` is met by random activations.
"""

OTHER = replace(
    TINY,
    hidden_size=384,
    moe_intermediate_size=256,
    num_hidden_layers=5,
    compress_ratios=(128, 4, 0, 4, 128, 0),
    num_attention_heads=6,
    head_dim=128,
    qk_rope_head_dim=64,
    q_lora_rank=256,
    o_groups=3,
    index_n_heads=12,
    index_head_dim=128,
    index_topk=12,
    n_routed_experts=6,
    num_experts_per_tok=2,
    vocab_size=1280,
    sliding_window=24,
    num_hash_layers=1,
    hc_mult=2,
)
"""Unlike `TINY` in every dimension."""

PRO_LIKE = replace(
    TINY,
    num_hidden_layers=5,
    compress_ratios=(128, 128, 4, 128, 4, 0),
    num_attention_heads=8,
    o_groups=4,
    index_topk=16,
    n_routed_experts=12,
    routed_scaling_factor=2.5,
)
"""`PRO` made tiny: no layer without a compressor."""

R0731_LIKE = replace(
    TINY,
    num_hidden_layers=5,
    compress_ratios=(0, 0, 4, 128, 4, 0, 0, 0),
    dspark_markov_rank=32,
    dspark_noise_token_id=1500,
    dspark_target_layer_ids=(2, 3, 4),
)
"""`FLASH_0731` made tiny."""

BASE_LIKE = replace(TINY, num_hidden_layers=5, compress_ratios=(0, 0, 4, 128, 4, 0), expert_dtype="fp8")
"""`FLASH_BASE` made tiny."""

SMALL = SampleShape(
    hidden_size=1024,
    moe_intermediate_size=512,
    num_hidden_layers=12,
    compress_ratios=(0, 0, *(4, 128) * 5, 0),
    num_attention_heads=16,
    head_dim=128,
    qk_rope_head_dim=64,
    q_lora_rank=256,
    o_lora_rank=256,
    o_groups=4,
    index_n_heads=16,
    index_head_dim=128,
    index_topk=64,
    n_routed_experts=128,
    num_experts_per_tok=6,
    vocab_size=4096,
    sliding_window=128,
    max_position_embeddings=65536,
)
"""Flash's proportions in about 1.5 GB."""
