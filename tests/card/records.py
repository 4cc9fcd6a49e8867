"""Records of the published Flash, planned from headers alone, with the evidence of many a validation."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from hubtool.checkpoint.source import LocalSource
from hubtool.convert.record import encodings, plan_record
from hubtool.guard.guard import GuardReport, Limits, Reason
from hubtool.models import read_model
from hubtool.plan.plan import Plan, make_plan
from hubtool.plan.recipe import load_recipe
from hubtool.record import (
    SCHEMA,
    ComparedRecord,
    DistanceRecord,
    DroppedRecord,
    Evidence,
    FileRecord,
    MachineRecord,
    MeasuredRecord,
    QualityRecord,
    RecipeRecord,
    Record,
    SourceRecord,
    TextRecord,
)
from hubtool.units import GB, GIB

REPO = "Thump604/DeepSeek-V4-Flash-MLX-Q3-mixed-gs128-affine"
BASE = "deepseek-ai/DeepSeek-V4-Flash"
COMMIT = "6e763230a9d263eca2023f1d4a5ce1bfe126cf48"
TOOLING = "Thump604/mlx-lm, branch deepseek-v4-support-fixes"

STUDIO = MachineRecord(model="Mac Studio", chip="Apple silicon", memory_nbytes=128 * GIB, system="")
BIG_STUDIO = MachineRecord(model="Mac Studio", chip="Apple M3 Ultra", memory_nbytes=512 * GIB, system="macOS 26.1")
SERVER = MachineRecord(model="", chip="AMD EPYC 9654", memory_nbytes=16 * GIB, system="Linux 6.12")
VERSIONS = {"mlx": "0.32.4", "mlx-lm": "0.32.2"}

SEED_NOTES = """\
DeepSeek V4 support in MLX is still under active development. This artifact was produced with local DeepSeek V4 support
fixes, including FP4/FP8 checkpoint handling, F8_E8M0 scale metadata reinterpretation as raw uint8 exponent bytes before
sanitizer decode, attention sink dtype handling, and quantized grouped output projection support.
"""


def full_size_record(folder: Path) -> Record:
    """The record of the published Flash as `mixed_3_6`, as far as headers tell: hashes of shards are their names'."""
    source = LocalSource(folder)
    model = read_model(source.config, {name: tensor.spec for name, tensor in source.tensors.items()})
    plan = make_plan(model, load_recipe("mixed_3_6"))
    planned = plan_record(plan)
    return Record(
        schema=SCHEMA,
        repo=REPO,
        source=SourceRecord(
            repo=BASE,
            repo_known="observed",
            commit=COMMIT,
            commit_known="observed",
            architecture=model.architecture,
            model_type=model.model_type,
            metadata={"license": "mit"},
            files=tuple(_file(name, source.nbytes(name)) for name in ("config.json", "LICENSE", *source.shards)),
            dropped=tuple(
                DroppedRecord(names=item.names, tensors=item.tensors, nbytes=item.nbytes, reason=item.reason)
                for item in model.dropped
            ),
            encodings=encodings(plan),
        ),
        recipe=RecipeRecord(
            name=plan.recipe.name,
            summary=plan.recipe.summary,
            sha256=plan.recipe.sha256,
            text=plan.recipe.text,
            description=" ".join(plan.recipe.description.split()),
        ),
        versions={"hubtool": "0.1.0", "mlx": "0.32.4", "numpy": "2.4.6", "python": "3.12.13"},
        plan=planned,
        measured=MeasuredRecord(
            nbytes=planned.nbytes,
            parameters=planned.parameters,
            effective_bits=plan.effective_bits,
            tensors=planned.tensors,
            shards=planned.shards,
            dtypes=planned.dtypes,
        ),
        files=_files(plan),
    )


def _files(plan: Plan) -> tuple[FileRecord, ...]:
    documents = ("LICENSE", "chat_template.jinja", "config.json", "deepseek_v4.py", "tokenizer.json")
    shards = tuple(_file(shard.file, shard.nbytes) for shard in plan.shards)
    return (*(_file(name, 1000 + len(name)) for name in documents), *shards)


def _file(name: str, nbytes: int) -> FileRecord:
    return FileRecord(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), nbytes=nbytes)


def with_layer_errors(record: Record) -> Record:
    """The record with an error in each layer and component that has bits to spare."""
    replace = msgspec.structs.replace
    layers = tuple(
        replace(share, error=0.5 ** (8 * share.nbytes / share.parameters) / (1 + (share.layer or 0) % 3))
        for share in record.plan.layers
    )
    components = tuple(
        replace(component, error=0.5 ** (8 * component.nbytes / component.parameters) if component.formats else None)
        for component in record.plan.components
    )
    return replace(record, plan=replace(record.plan, layers=layers, components=components))


def with_evidence(record: Record, *evidence: Evidence) -> Record:
    """The record with this evidence about its files."""
    about = tuple(msgspec.structs.replace(item, subject=record.subject) for item in evidence)
    return msgspec.structs.replace(record, evidence=about)


def evidence(check: str, outcome: str, detail: str = "", **other: object) -> Evidence:
    """Evidence about no files yet: see `with_evidence`."""
    document = {
        "check": check,
        "outcome": outcome,
        "detail": detail,
        "figures": {},
        "machine": msgspec.to_builtins(BIG_STUDIO),
        "versions": VERSIONS,
        "command": f"hubtool validate --{check}",
        "started": "2026-11-23T08:15:00Z",
        "seconds": 12.5,
        "subject": "0" * 64,
        **{name: msgspec.to_builtins(value) for name, value in other.items()},
    }
    return msgspec.convert(document, Evidence)


def _distance(kl_mean: float, top1: float) -> DistanceRecord:
    return DistanceRecord(
        kl_mean=kl_mean,
        kl_stderr=kl_mean / 31,
        kl_median=kl_mean / 2,
        kl_p99=kl_mean * 12,
        kl_p999=kl_mean * 40,
        kl_max=kl_mean * 90,
        top1=top1,
        delta_p_mean=-kl_mean / 20,
        delta_p_rms=kl_mean / 3,
        ppl=4.529 * (1 + kl_mean / 4),
        ppl_source=4.529,
        ln_ppl_ratio=kl_mean / 4,
        experts=((0, 1.0), (1, top1)),
    )


QUALITY_EVIDENCE = evidence(
    "quality",
    "passed",
    "predictions held against the source's on 8160 tokens of wiki.test.raw, in 32 windows of 512",
    kind="measured",
    quality=QualityRecord(
        text=TextRecord(name="org/wikitext: wiki.test.raw", commit=COMMIT, sha256="a1" * 32, tokens=16384),
        stream_sha256="b2" * 32,
        tokens=8160,
        windows=32,
        context=512,
        distance=_distance(0.2513, 0.874),
        floor=_distance(0.0163, 0.981),
        others=(
            ComparedRecord(
                recipe="mixed_2_6",
                repo="Thump604/DeepSeek-V4-Flash-MLX-Q2-mixed-gs128-affine",
                nbytes=106_355_393_628,
                effective_bits=2.992,
                distance=_distance(0.6137, 0.792),
            ),
        ),
    ),
)

SEED_EVIDENCE = (
    evidence(
        "load",
        "passed",
        "Lazy MLX load completed successfully",
        machine=STUDIO,
        versions={"mlx-lm": TOOLING},
        kind="stated",
        started="",
    ),
    evidence(
        "smoke",
        "aborted_by_guard",
        "one token was attempted; memory pressure and swap activity exceeded the local safety boundary",
        machine=STUDIO,
        versions={"mlx-lm": f"{TOOLING}, at least commit 9c990f4"},
        kind="stated",
        started="",
    ),
)
"""What the publisher of the first MLX conversion of Flash says of it."""

INTEGRITY = evidence("integrity", "passed", "headers, index, config and hashes agree; every scale is finite")
LOAD = evidence("load", "passed", "every parameter matched")
RESIDENT = evidence(
    "smoke",
    "passed",
    "finite, and the same twice",
    figures={
        "limit_nbytes": 384 * GIB,
        "peak_nbytes": 139_000_000_000,
        "swap_growth_nbytes": 0,
        "tokens": 32,
        "tokens_per_second": 21.37,
    },
)
STREAMED = evidence(
    "smoke-streamed",
    "passed",
    "finite, and the same twice",
    machine=SERVER,
    figures={"limit_nbytes": 12 * GIB, "peak_nbytes": 9_876_543_210, "tokens": 8, "seconds_per_token": 14.2},
)
REFUSED = evidence(
    "smoke",
    "refused_preflight",
    "weights, cache and headroom need 141.20 GB (131.50 GiB)",
    machine=STUDIO,
    figures={"limit_nbytes": 103_079_215_104},
)


def aborted(reason: Reason, limits: Limits, **seen: Any) -> Evidence:
    """Evidence of a generation that the guard stopped, as the guard words it."""
    report = GuardReport(
        returncode=-15,
        reason=reason,
        limits=limits,
        killed=False,
        left=0,
        samples=4800,
        longest_gap=0.03,
        seconds=120.0,
        measure="phys_footprint",
        unmeasured=(),
        errors="",
        **seen,
    )
    figures = {"tokens": 0, **report.figures()}
    return evidence("smoke", "aborted_by_guard", report.explanation(), machine=STUDIO, figures=figures)


ABORTED = aborted(
    "memory",
    Limits(96 * GIB, swap_growth_nbytes=4 * GB),
    peak_nbytes=104_200_000_000,
    swap_growth_nbytes=2_147_483_648,
    pressure=0.5,
)
ABORTED_BY_SWAP = aborted(
    "swap", Limits(96 * GIB), peak_nbytes=94_300_000_000, swap_growth_nbytes=1_181_116_006, pressure=0.5
)
ABORTED_BY_PRESSURE = aborted(
    "pressure", Limits(96 * GIB), peak_nbytes=94_300_000_000, swap_growth_nbytes=536_870_912, pressure=1.0
)
FAILED = evidence("smoke", "failed", "the logits of token 3 are not finite")
NOT_RUN = evidence("smoke", "not_run", "this machine has no MLX backend", machine=SERVER)

OUTCOMES = {
    "converted": (),
    "integrity": (INTEGRITY,),
    "loaded": (INTEGRITY, LOAD),
    "qualified": (INTEGRITY, LOAD, RESIDENT),
    "streamed": (INTEGRITY, LOAD, REFUSED, STREAMED),
    "refused": (INTEGRITY, LOAD, REFUSED),
    "aborted": (INTEGRITY, LOAD, ABORTED),
    "aborted_by_swap": (INTEGRITY, LOAD, ABORTED_BY_SWAP),
    "aborted_by_pressure": (INTEGRITY, LOAD, ABORTED_BY_PRESSURE),
    "failed": (INTEGRITY, LOAD, FAILED),
    "not_run": (INTEGRITY, LOAD, NOT_RUN),
    "elsewhere": (INTEGRITY, LOAD, RESIDENT, ABORTED),
    "stated": SEED_EVIDENCE,
}
"""Evidence by what it comes to; each has a golden of its own."""
