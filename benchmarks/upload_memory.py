"""Memory of an upload of one 5 GiB shard: `hubtool upload` against the stock client alone, each in its own process.

    .venv/bin/python benchmarks/upload_memory.py             by xet and by LFS; some minutes, 11 GB of disk
    .venv/bin/python benchmarks/upload_memory.py --gib 1     a smaller shard
    .venv/bin/python benchmarks/upload_memory.py --by lfs    one way only

Two runs, one for each way, on two cores of a shared x86-64 machine, most resident memory with 5,368,709,240 bytes:

    xet    stock client 498 MB, hubtool 528 MB: 30 MB more
    lfs    stock client 40 MB, hubtool 67 MB: 27 MB more
"""

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPO = "rehearsal/shard"
OUT = "out"
GIB = 1 << 30
BLOCK_NBYTES = 1 << 26

STOCK = """
import os, sys
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=os.environ["HF_TOKEN"])
api.create_repo(sys.argv[2])
path = sys.argv[1]
api.create_commit(sys.argv[2], [CommitOperationAdd(os.path.basename(path), path)], commit_message="Shard")
"""


def finished_folder(work: Path, nbytes: int) -> None:
    """A finished folder whose one shard is replaced by one of `nbytes` random bytes, and recorded so."""
    import numpy as np

    from hubtool.checkpoint.open import open_source
    from hubtool.checkpoint.tensors import TensorSpec, encode_header
    from hubtool.cli.console import Console
    from hubtool.convert.convert import convert_sources
    from hubtool.convert.job import Effort, Job
    from hubtool.plan.plan import plan_source
    from hubtool.record import RECORD_FILE, read_record
    from hubtool.sample import TINY, write_sample

    source = open_source(str(write_sample(work / "source", TINY)), "someone/DeepSeek-V4-sample")
    (plan,) = plan_source(source, ["native"])
    folder = work / OUT
    convert_sources(source, [Job(plan, folder)], Effort(), Console(quiet=True))
    (shard,) = folder.glob("*.safetensors")
    digest, random = hashlib.sha256(), np.random.default_rng(0)
    with shard.open("wb") as file:
        header = encode_header([TensorSpec("random", "U8", (nbytes,))], {"format": "mlx"})
        blocks = (random.bytes(BLOCK_NBYTES) for _ in range(nbytes // BLOCK_NBYTES))
        for block in itertools.chain([header], blocks):
            digest.update(block)
            file.write(block)
    record = json.loads((folder / RECORD_FILE).read_bytes())
    for entry in record["files"]:
        if entry["name"] == shard.name:
            entry |= {"sha256": digest.hexdigest(), "nbytes": shard.stat().st_size}
    (folder / RECORD_FILE).write_text(json.dumps(record))
    assert read_record(folder) is not None


@contextmanager
def rehearsal(data: Path) -> Iterator[dict[str, str]]:
    """The environment of a rehearsal Hub that discards, in a process of its own."""
    command = [sys.executable, "-m", "hubtool", "rehearse", "--discard", "--port", "0", "--data", str(data), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    else:
        raise SystemExit("the rehearsal Hub did not start")
    try:
        token = (data / "token").read_text().strip()
        yield environment | {"HF_ENDPOINT": json.loads(text)["endpoint"], "HF_TOKEN": token}
    finally:
        process.terminate()
        process.wait()


def peak(command: list[str], environment: dict[str, str], path: str) -> int:
    """Most resident bytes of a command, which must succeed."""
    process = subprocess.Popen(
        command, env=environment | {"HF_HUB_DISABLE_XET": str(int(path == "lfs"))}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:3]}: exit status {status}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=5)
    parser.add_argument("--by", choices=["xet", "lfs"], action="append", help="Both by default.")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        finished_folder(options.make, options.gib * GIB)
        return
    with tempfile.TemporaryDirectory(prefix="upload-memory-") as name:
        work = Path(name)
        # Elsewhere: a process begins with the peak of the one that started it.
        make = [sys.executable, __file__, "--gib", str(options.gib), "--make", name]
        subprocess.run(make, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        folder = work / OUT
        (shard,) = folder.glob("*.safetensors")
        for path in options.by or ("xet", "lfs"):
            peaks = []
            for who, command in {
                "stock": ["-c", STOCK, str(shard), REPO],
                "hubtool": ["-m", "hubtool", "upload", str(folder), "--to", REPO, "--json", "-q"],
            }.items():
                with rehearsal(work / f"hub-{path}-{who}") as environment:
                    peaks.append(peak([sys.executable, *command], environment, path))
            stock, own = peaks
            print(
                f"{path}: {shard.stat().st_size:,} bytes; stock client {stock / 1e6:.0f} MB, "
                f"hubtool {own / 1e6:.0f} MB, {(own - stock) / 1e6:+.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
