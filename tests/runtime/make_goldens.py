"""Writes goldens.npz: what the PyTorch implementation in transformers makes of the random checkpoints, in float32.

    python -m pip install torch==2.13.0 transformers==5.23.0 numpy safetensors
    PYTHONPATH=. python tests/runtime/make_goldens.py

The tests need neither package: they make the same checkpoints again from the shape's name and the seed.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import DeepseekV4ForCausalLM
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Indexer

from tests.runtime.random_checkpoint import (
    CONTINUATION,
    GOLDENS,
    PROMPT,
    SEED,
    SHAPES,
    Config,
    random_config,
    random_tokens,
    random_weights,
)

MARGIN = 5e-6
"""Least difference between index scores, and between logits, that a choice may hang on."""


def load_reference(config: Config, seed: int) -> DeepseekV4ForCausalLM:
    """The model, loaded from a file with the published names, which transformers translates by itself."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(random_weights(config, seed), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        model: DeepseekV4ForCausalLM
        model, report = DeepseekV4ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    assert not any(report.values()), report
    return model.eval()


def watch_choices(model: DeepseekV4ForCausalLM) -> list[float]:
    """A list that collects how far apart the last entry that an indexer chooses and the first it leaves out score."""
    margins = []

    def note(indexer: DeepseekV4Indexer, scores: torch.Tensor) -> None:
        tokens, entries = scores.shape[1:]
        visible = (torch.arange(tokens) + 1) // indexer.compress_rate
        scores = scores.masked_fill(torch.arange(entries) >= visible[:, None], -torch.inf)
        ranked = scores[:, visible > indexer.index_topk].sort(dim=-1, descending=True).values
        margins.extend((ranked[..., indexer.index_topk - 1] - ranked[..., indexer.index_topk]).flatten().tolist())

    for indexer in (module for module in model.modules() if isinstance(module, DeepseekV4Indexer)):
        indexer.scorer.register_forward_hook(lambda _, inputs, scores, owner=indexer: note(owner, scores))
    return margins


@torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
def golden(shape: str) -> dict[str, NDArray[np.float32] | NDArray[np.int32]]:
    """Token ids of prompt and greedy continuation, and the logits of one forward pass over both."""
    config = random_config(shape)
    model = load_reference(config, SEED)
    prompt = torch.tensor([random_tokens(config, PROMPT, SEED)])
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=CONTINUATION, eos_token_id=None
    )
    margins = watch_choices(model)
    logits = model(tokens, use_cache=False).logits[0]
    top = logits.sort(dim=-1, descending=True).values
    lead = (top[:, 0] - top[:, 1])[PROMPT - 1 : -1].min()
    # Rounding, which differs from one implementation to the next, must decide nothing.
    assert min(margins) > MARGIN, min(margins)
    assert lead > MARGIN, lead
    return {f"{shape}.tokens": tokens[0].numpy().astype(np.int32), f"{shape}.logits": logits.numpy()}


if __name__ == "__main__":
    arrays = {name: array for shape in SHAPES for name, array in golden(shape).items()}
    np.savez_compressed(GOLDENS, **arrays)
