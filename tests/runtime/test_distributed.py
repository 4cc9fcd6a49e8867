"""Two processes on loopback share a model, by tensors or by layers, and say what one says."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.runtime.conftest import Goldens, Models
from tests.runtime.test_exact import SAME, difference

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import sys
import mlx.core as mx
import numpy as np
from tests.runtime.conftest import load_random
from tests.runtime.random_checkpoint import random_config

shape, how, tokens, out = sys.argv[1:]
group = mx.distributed.init(strict=True, backend="ring")
assert group.size() == 2
model = load_random(random_config(shape))
mx.eval(model.parameters())
model.model.pipeline(group) if how == "pipeline" else model.shard(group)
ids = mx.array(np.load(tokens))
cache = model.make_cache()
mx.eval(model(ids[:, :100], cache), [layer.state for layer in cache])
model(ids[:, 100:150], cache)  # prefill: nobody asks for these logits
mx.eval([layer.state for layer in cache])
logits = []
for i in range(150, ids.shape[1]):
    logits.append(model(ids[:, i : i + 1], cache))
    mx.eval(logits[-1])
np.save(out + str(group.rank()), np.array(mx.concatenate(logits, axis=1)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shard", "pipeline"])
def test_two_ranks_give_the_logits_of_one(how: str, models: Models, goldens: Goldens, tmp_path: Path) -> None:
    tokens = goldens("flash").tokens[:, :160]
    np.save(tmp_path / "tokens.npy", np.array(tokens))
    (tmp_path / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    command = [sys.executable, "-c", WORKER, "flash", how, str(tmp_path / "tokens.npy"), str(tmp_path / "logits")]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(tmp_path / "hosts.json")}
    ranks = [
        subprocess.Popen(command, env=shared | {"MLX_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    expected = models("flash")(tokens)[:, 150:]
    for rank in range(2):
        assert difference(mx.array(np.load(tmp_path / f"logits{rank}.npy")), expected) <= SAME


def test_heads_that_cannot_be_shared_are_refused(models: Models) -> None:
    class Group:
        def rank(self) -> int:
            return 0

        def size(self) -> int:
            return 3

    with pytest.raises(ValueError, match="4 heads and 2 output groups"):
        models("mixed").shard(Group())  # type: ignore[arg-type]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
