"""V4-Flash's real layout, streamed to a rehearsal Hub that discards: constant memory, and a disk that never fills.

    .venv/bin/python benchmarks/full_size.py --layers 2     a part: embeddings, two layers, head
    .venv/bin/python benchmarks/full_size.py                all 43 layers: 135,346,422,876 bytes of tensors

The checkpoint lies nowhere: every byte is generated when it is read, from a counter-based generator that is keyed by
the tensor's name, so that it is incompressible and the same whenever it is read. What stands for the SHA-256 of a
source file is that of its name. The Hub is a process of its own; hf_xet stores one shard there at a time.

Two runs on two cores of a shared x86-64 machine; it had much else to do during the first, little during the second:

    all 43 layers               135,346,422,876 bytes of tensors in 28 shards, 40 files in one commit, verified: 2,622 s
                                (52 MB/s), at most 892 MB of memory (the Hub's own process 631 MB) and 4.77 GB of disk
    --layers 1 --shard-gib 1    4,364,901,868 bytes of tensors in 5 shards: 46 s (96 MB/s), 664 MB (527 MB), 1.53 GB
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hubtool.checkpoint.identity import Identity
from hubtool.checkpoint.source import Checkpoint
from hubtool.checkpoint.tensors import Header, StoredTensor, encode_header, parse_header
from hubtool.cli.console import Console
from hubtool.convert.job import Effort, Job
from hubtool.hub.client import make_api
from hubtool.hub.destination import Destination
from hubtool.plan.plan import SHARD_NBYTES, make_plan, plan_source
from hubtool.release.publish import OpenRelease, publish
from hubtool.release.release import Release, Variant
from hubtool.sample import FLASH, published_shards, tokenizer_files, write_documents
from hubtool.sample.shapes import SampleShape

ROOT = Path(__file__).resolve().parent.parent
REPO = "rehearsal/DeepSeek-V4-Flash-mixed_3_6"
WORDS_A_STEP = 4
STEP_NBYTES = 8 * WORDS_A_STEP
"""Philox makes four words of 64 bits a step."""


class SyntheticSource(Checkpoint):
    """A checkpoint of this shape whose weights are made when they are read."""

    name = "deepseek-ai/DeepSeek-V4-Flash"
    identity = Identity("deepseek-ai/DeepSeek-V4-Flash", "stated")
    disk_nbytes = 0

    def __init__(self, folder: Path, shape: SampleShape) -> None:
        self._folder = folder
        self._shape = shape
        write_documents(folder, shape)
        for name, document in tokenizer_files(shape.vocab_size).items():
            (folder / name).write_text(json.dumps(document))

    @cached_property
    def shards(self) -> Mapping[str, Header]:
        headers = {}
        for name, specs in published_shards(self._shape).items():
            header = encode_header(specs, {"format": "pt"})
            nbytes = len(header) + sum(spec.nbytes for spec in specs)
            headers[name] = parse_header(header[8:], name, nbytes)
        return headers

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self._folder.iterdir()))

    @cached_property
    def _by_offset(self) -> Mapping[str, tuple[np.ndarray, Sequence[StoredTensor]]]:
        return {
            name: (np.array([tensor.offset for tensor in header.tensors]), header.tensors)
            for name, header in self.shards.items()
        }

    def read_file(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        offsets, tensors = self._by_offset[file]
        tensor = tensors[int(np.searchsorted(offsets, offset, side="right")) - 1]
        start = offset - tensor.offset
        if start + len(buffer) > tensor.nbytes:
            raise ValueError(f"{file}: a read across tensors")
        key = int.from_bytes(hashlib.sha256(tensor.spec.name.encode()).digest()[:16])
        first = start // STEP_NBYTES
        steps = -(-(start + len(buffer)) // STEP_NBYTES) - first
        words = np.random.Philox(key=key).advance(first).random_raw(steps * WORDS_A_STEP)
        skipped = start - first * STEP_NBYTES
        content = words.view(np.uint8)[skipped : skipped + len(buffer)]
        buffer[:] = _finite(content, tensor.spec.dtype).data

    def sha256(self, file: str) -> str:
        content = file.encode() if file in self.shards else self.read_file(file)
        return hashlib.sha256(content).hexdigest()

    def nbytes(self, file: str) -> int:
        header = self.shards.get(file)
        return header.nbytes + header.data_nbytes if header else (self._folder / file).stat().st_size

    def stamp(self, file: str) -> str:
        return "synthetic"

    def prepare(self, files: Sequence[str]) -> None:
        pass

    def release(self, file: str) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def _finite(random: np.ndarray, dtype: str) -> np.ndarray:
    """Random bytes as values of a dtype: none infinite or NaN, exponents near those of weights."""
    if dtype == "F8_E8M0":
        return (random & 0x07) | 0x70
    if dtype == "F8_E4M3":
        return random & 0xBF  # exponents below 8: 0x7F and 0xFF are NaN
    if dtype == "BF16":
        return ((random.view(np.uint16) & 0x83FF) | 0x3C00).view(np.uint8)
    if dtype == "F32":
        return ((random.view(np.uint32) & 0x83FFFFFF) | 0x3C000000).view(np.uint8)
    if dtype == "I64":
        return (random.view(np.uint64) & 0xFF).view(np.uint8)
    return random


class Most:
    """The most bytes of disk that these folders take, looked at ten times a second."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._stop = threading.Event()
        self.nbytes = 0

    def __enter__(self) -> "Most":
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.nbytes = max(self.nbytes, sum(map(_used, self._folders)))


def _used(folder: Path) -> int:
    """Bytes of disk that the files of a folder take, each counted once however many names it has."""
    blocks = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(parent, name).stat()
            except FileNotFoundError:
                continue
            blocks[status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())


@contextmanager
def rehearsal(data: Path) -> Iterator[tuple[str, str]]:
    """Address and token of a rehearsal Hub that discards, in a process of its own."""
    command = [sys.executable, "-m", "hubtool", "rehearse", "--discard", "--port", "0", "--data", str(data), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
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
        yield json.loads(text)["endpoint"], (data / "token").read_text().strip()
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=FLASH.num_hidden_layers, help="How many of the 43.")
    parser.add_argument("--recipe", default="mixed_3_6")
    parser.add_argument("--shard-gib", type=int, default=SHARD_NBYTES >> 30)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    ratios = (*FLASH.compress_ratios[: options.layers], *FLASH.compress_ratios[FLASH.num_hidden_layers :])
    shape = replace(FLASH, num_hidden_layers=options.layers, compress_ratios=ratios)
    with tempfile.TemporaryDirectory(prefix="full-size-") as folder:
        work = Path(folder)
        (work / "source").mkdir()
        source = SyntheticSource(work / "source", shape)
        (whole,) = plan_source(source, [options.recipe])
        plan = make_plan(whole.model, whole.recipe, options.shard_gib << 30)
        print(f"{plan.nbytes:,} bytes of tensors in {len(plan.shards)} shards, {plan.effective_bits:.3f} bits")
        begun = time.monotonic()
        with rehearsal(work / "hub") as (endpoint, token), Most(work) as disk:
            api, job = make_api(endpoint, token), Job(plan, work / "out")
            variant = Variant(options.recipe, Destination(REPO), job.folder)
            release = Release(source.name, (variant,), job.folder, whole=False, stream=True)
            (made,) = publish(api, OpenRelease(release, source, (job,)), Effort(options.jobs), Console())
        print(f"{made.uploaded.files} files, verified at {made.uploaded.commit}")
        seconds = time.monotonic() - begun
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        hub = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
        # The temporary file of a module's scales and biases has no name by which it could be looked at.
        spool = max(sum(output.spec.nbytes for output in step.outputs[1:]) for step in plan.steps)
        print(
            f"{plan.nbytes:,} bytes in {seconds:,.0f} s ({plan.nbytes / seconds / 1e6:.0f} MB/s); most memory "
            f"{peak / 1e6:,.0f} MB, of the Hub {hub / 1e6:,.0f} MB; most disk {(disk.nbytes + spool) / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    main()
