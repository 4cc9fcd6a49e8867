"""What the tests publish."""

import numpy as np
from huggingface_hub import CommitOperationAdd
from safetensors.numpy import save

REPO = "someone/model"


def shard(seed: int, rows: int = 64) -> bytes:
    """A real safetensors file with two tensors of `rows` * 256 elements."""
    random = np.random.default_rng(seed)
    tensors = {
        f"layers.{seed}.weight": random.integers(0, 2**32, (rows, 256), dtype=np.uint32),
        f"layers.{seed}.scales": random.standard_normal((rows, 256)).astype(np.float32),
    }
    return save(tensors, {"format": "mlx"})


def additions(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    """What commits these files."""
    return [CommitOperationAdd(path, content) for path, content in files.items()]
