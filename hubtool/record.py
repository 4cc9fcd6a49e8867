"""The record (hubtool.json): all that is known of a published folder, as strict types, and how it is read and written.

It travels in the repo. The card is made from it, and `verify` holds the Hub's files against it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from hubtool.errors import RecordError
from hubtool.files.formats import Failure, convert, parse_json
from hubtool.files.read import is_inner_path

RECORD_FILE = "hubtool.json"
SCHEMA = 1

CARD_FILE = "README.md"
PROVENANCE_FILE = "provenance.intoto.json"
TEST_RESULT_FILE = "test-result.intoto.json"
SIGNATURE_FILE = "model.sig"
ASSETS_PREFIX = "assets/"
QUALITY_PICTURE = f"{ASSETS_PREFIX}quality.png"
PICTURE_FILES = (*(f"{ASSETS_PREFIX}{name}.png" for name in ("bits", "bytes", "error")), QUALITY_PICTURE)
DERIVED_FILES = (RECORD_FILE, CARD_FILE, PROVENANCE_FILE, TEST_RESULT_FILE, SIGNATURE_FILE, *PICTURE_FILES)
"""What hubtool makes of a record; other files in the folder of pictures are the publisher's own."""

CARRIED_KEYS = ("license", "license_name", "license_link", "language")
"""What the source's card says that the new card may say too. Never its evaluation results, gating or new_version."""

Rung = Literal["integrity", "load", "smoke", "smoke-streamed", "quality"]
RUNGS: tuple[Rung, ...] = ("integrity", "load", "smoke", "smoke-streamed", "quality")
"""The ladder of validation, cheapest first."""

Outcome = Literal["passed", "failed", "refused_preflight", "aborted_by_guard", "not_run"]
EvidenceKind = Literal["measured", "stated"]
Knowledge = Literal["observed", "stated"]
NBytes = Annotated[int, msgspec.Meta(ge=0)]
SHA256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value whose JSON may hold nothing unknown."""


class FileRecord(_Strict, frozen=True):
    """A file by name, SHA-256 and size in bytes."""

    name: str
    sha256: SHA256
    nbytes: NBytes


class DroppedRecord(_Strict, frozen=True):
    """Tensors of the source that were not converted, and why."""

    names: str
    tensors: int
    nbytes: NBytes
    reason: str


class SourceRecord(_Strict, frozen=True):
    """The checkpoint that was converted.

    Attributes:
        repo: `org/name` on the Hub, if known.
        repo_known: Whether that was observed in what the Hub's client left, or stated by the publisher.
        commit: 40 hexadecimal digits, if known.
        commit_known: As `repo_known`.
        architecture: config.json's `architectures[0]`.
        model_type: config.json's `model_type`.
        metadata: License and language from its card: what the new card may carry on.
        files: Every file that was read.
        chat_template: Which chat template goes with the weights, and why, as a clause; empty if that was not recorded.
        unverified: Those of the files whose hash is only what the Hub says: parts of them were read straight from it.
        dropped: What was not converted.
        encodings: Logical parameters by how they are published: `fp4`, `fp8` or `plain`.
    """

    repo: str | None
    repo_known: Knowledge | None
    commit: str | None
    commit_known: Knowledge | None
    architecture: str
    model_type: str
    metadata: dict[str, str | list[str]]
    files: tuple[FileRecord, ...]
    dropped: tuple[DroppedRecord, ...]
    encodings: dict[str, int] = {}
    unverified: tuple[str, ...] = ()
    chat_template: str = ""


class RecipeRecord(_Strict, frozen=True):
    """The recipe as it was read."""

    name: str
    summary: str
    sha256: SHA256
    text: str
    description: str = ""


class ComponentRecord(_Strict, frozen=True):
    """Totals of one component; `error` is the relative mean squared error, if it was measured.

    `weighted_error` is the same weighted by the inputs, where there are statistics of them.
    """

    name: str
    parameters: int
    nbytes: NBytes
    formats: tuple[str, ...]
    error: float | None = None
    weighted_error: float | msgspec.UnsetType = msgspec.UNSET


class LayerRecord(_Strict, frozen=True):
    """A component's share of one decoder layer; `layer` is None for what lies outside the layers.

    `error` is the relative mean squared error, if it was measured.
    """

    layer: int | None
    component: str
    parameters: int
    nbytes: NBytes
    error: float | None = None


class CacheRecord(_Strict, frozen=True):
    """What the runtime remembers of one sequence of `tokens` tokens on a GPU, in bytes."""

    tokens: int
    nbytes: NBytes


class PlanRecord(_Strict, frozen=True):
    """What the plan foretold.

    Attributes:
        digest: SHA-256 over everything that decides the bytes.
        nbytes: Bytes of tensors.
        parameters: Logical parameters.
        tensors: Tensors of the output.
        shards: Files of weights.
        dtypes: Bytes by safetensors dtype.
        mode: Quantization mode of the largest part, None if nothing is quantized.
        group_size: Group size of the largest part, None likewise.
        label_bits: The `bits` of config.json that the Hub's label follows, None likewise.
        components: By component.
        layers: By layer and component.
        cache: Bytes of the runtime's cache by length of the conversation.
    """

    digest: SHA256
    nbytes: NBytes
    parameters: int
    tensors: int
    shards: int
    dtypes: dict[str, int]
    mode: str | None
    group_size: int | None
    label_bits: int | None
    components: tuple[ComponentRecord, ...]
    layers: tuple[LayerRecord, ...] = ()
    cache: tuple[CacheRecord, ...] = ()


class WeightErrorRecord(_Strict, frozen=True):
    """How far the quantized weights are from the decoded source: sum (w' - w)**2 / sum w**2.

    Attributes:
        every_row: Every how many-th row of a matrix was measured: 1 for all.
        tensors: By tensor; what is not quantized has no error and is left out.
        weighted: The same with each channel weighted by the mean square of its inputs, of those that have statistics.
    """

    every_row: int
    tensors: dict[str, float]
    weighted: dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class TextRecord(_Strict, frozen=True):
    """A text that a model read.

    Attributes:
        name: The file's name, or `org/name: file` of a dataset on the Hub.
        commit: Of the dataset, None for a file of one's own.
        sha256: Of the file.
        tokens: That were taken from it.
    """

    name: str
    commit: str | None
    sha256: SHA256
    tokens: int


class Calibration(_Strict, frozen=True):
    """How statistics were made.

    Attributes:
        repo: `org/name` of the model that read the texts, if known.
        commit: Its commit, if known.
        model_type: config.json's `model_type`.
        texts: What it read.
        tokens: How many tokens in all.
        window: Tokens of one sequence.
        tokens_sha256: SHA-256 of the token ids as little-endian int32, in the order in which they were read.
        versions: hubtool and the libraries, and MLX's backend.
    """

    repo: str | None
    commit: str | None
    model_type: str
    texts: tuple[TextRecord, ...]
    tokens: int
    window: int
    tokens_sha256: SHA256
    versions: dict[str, str]


class FitRecord(_Strict, frozen=True):
    """How scales and biases were fitted to the inputs of the weights.

    Attributes:
        method: The quantizer.
        candidates: What it tried.
        statistics: SHA-256 of the file of statistics.
        calibration: How that was made.
        fitted: Tensors that were fitted.
        nearest: Tensors that were quantized without statistics.
        experts: Experts whose weights were fitted, counted in each stack; 0 without experts.
        least_tokens: Tokens that the least used of them saw; of all tensors' inputs where there are no experts.
        unseen: Experts that saw none, and took the mean of their stack.
    """

    method: str
    candidates: str
    statistics: SHA256
    calibration: Calibration
    fitted: int
    nearest: int
    experts: int
    least_tokens: int
    unseen: int


class MeasuredRecord(_Strict, frozen=True):
    """What was read back from the files; `effective_bits` is unrounded."""

    nbytes: NBytes
    parameters: int
    effective_bits: float
    tensors: int
    shards: int
    dtypes: dict[str, int]


class MachineRecord(_Strict, frozen=True):
    """What a machine is, and not whose."""

    model: str
    chip: str
    memory_nbytes: NBytes
    system: str


class DistanceRecord(_Strict, frozen=True):
    """How far predictions are from the source's: its next-token distributions p, and q that are compared with them.

    Attributes:
        kl_mean: Kullback-Leibler divergence of q from p in nats, mean over positions; those below likewise.
        kl_stderr: Standard error of the mean, over windows; None for a single window.
        kl_median: Half of the positions have less.
        kl_p99: 99 % have less.
        kl_p999: 99.9 % have less.
        kl_max: The largest.
        top1: Share of positions whose likeliest token is the same.
        delta_p_mean: q less p of the token that follows, mean.
        delta_p_rms: The same, root of the mean square.
        ppl: Perplexity of q.
        ppl_source: Perplexity of p.
        ln_ppl_ratio: Logarithm of their ratio.
        by_position: Mean divergence by position in the window: the first, the one behind the last, nats.
        experts: By layer, the share of routed experts that were chosen as by the source; empty without any.
    """

    kl_mean: float
    kl_stderr: float | None
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1: float
    delta_p_mean: float
    delta_p_rms: float
    ppl: float
    ppl_source: float
    ln_ppl_ratio: float
    by_position: tuple[tuple[int, int, float], ...] = ()
    experts: tuple[tuple[int, float], ...] = ()


class ComparedRecord(_Strict, frozen=True):
    """Another variant that was measured in the same run."""

    recipe: str
    repo: str | None
    nbytes: NBytes
    effective_bits: float
    distance: DistanceRecord


class QualityRecord(_Strict, frozen=True):
    """How far a variant's predictions are from its source's.

    Attributes:
        text: On what.
        stream_sha256: SHA-256 of the token ids that were read, as little-endian int32, window after window.
        tokens: Positions that were scored.
        windows: Of how many windows.
        context: Tokens of a window, the second half of which is scored.
        distance: The variant's.
        floor: The source's from itself, computed in bfloat16: below it variants cannot be distinguished.
        others: Other variants, measured in the same run.
    """

    text: TextRecord
    stream_sha256: SHA256
    tokens: int
    windows: int
    context: int
    distance: DistanceRecord
    floor: DistanceRecord | None
    others: tuple[ComparedRecord, ...] = ()


class Evidence(_Strict, frozen=True):
    """The outcome of one validation.

    Attributes:
        check: What was checked, `integrity`, `load`, `smoke`, `smoke-streamed`, `quality`.
        outcome: How it ended.
        detail: A sentence.
        figures: Numbers by name with the unit in the name.
        machine: Where.
        versions: Of the libraries that took part.
        command: The hubtool command, without paths.
        started: UTC, ISO 8601.
        seconds: How long it took.
        subject: Digest of the files that were checked: see `Record.subject`.
        kind: Measured by hubtool, or stated by the publisher.
        quality: What `quality` found.
    """

    check: str
    outcome: Outcome
    detail: str
    figures: dict[str, int | float | str]
    machine: MachineRecord
    versions: dict[str, str]
    command: str
    started: str
    seconds: float
    subject: SHA256
    kind: EvidenceKind = "measured"
    quality: QualityRecord | msgspec.UnsetType = msgspec.UNSET


class SiblingRecord(_Strict, frozen=True):
    """Another variant of the same release."""

    repo: str
    recipe: str
    nbytes: NBytes
    effective_bits: float


class WithdrawnRecord(_Strict, frozen=True):
    """That a release should no longer be used.

    Attributes:
        reason: Why, in a sentence of the publisher's.
        date: UTC, ISO 8601.
        new_version: `org/name` of what takes its place, if there is one.
    """

    reason: str
    date: str
    new_version: str | None = None


class Record(_Strict, frozen=True):
    """Everything that is known of a published folder.

    Attributes:
        schema: Version of this layout.
        source: Where the weights come from.
        recipe: How they were stored.
        versions: hubtool and the libraries that made the bytes.
        plan: What was foretold.
        measured: What was found.
        files: Every file of the folder but those that are made from the record: see `is_derived`.
        evidence: Validations, in the order in which they were made.
        weight_error: How far quantizing went from the source, None if nothing was quantized or it was not measured.
        fit: How scales were fitted to the weights' inputs, unset if they were not.
        repo: `org/name` that it is published as, if that is decided.
        siblings: The other variants of its release.
        withdrawn: Why it should no longer be used, None if it may be.
    """

    schema: int
    source: SourceRecord
    recipe: RecipeRecord
    versions: dict[str, str]
    plan: PlanRecord
    measured: MeasuredRecord
    files: tuple[FileRecord, ...]
    evidence: tuple[Evidence, ...] = ()
    weight_error: WeightErrorRecord | None = None
    fit: FitRecord | msgspec.UnsetType = msgspec.UNSET
    repo: str | None = None
    siblings: tuple[SiblingRecord, ...] = ()
    withdrawn: WithdrawnRecord | None = None

    @property
    def subject(self) -> str:
        """SHA-256 over the names and hashes of the files: what evidence is about."""
        return files_digest({file.name: file.sha256 for file in self.files})

    def hashes(self) -> dict[str, str]:
        """SHA-256 by file name."""
        return {file.name: file.sha256 for file in self.files}


def is_derived(name: str) -> bool:
    """Whether a file of the folder is the record or made from it, so that the record does not list it.

    Those are the card and its pictures, the provenance and the signature: they may be regenerated, and evidence about
    the weights stays what it is.
    """
    return name in DERIVED_FILES or name.startswith(ASSETS_PREFIX)


def files_digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over lines `<sha256>  <name>` sorted by name, as `sha256sum` prints them."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def encode_record(record: Record) -> bytes:
    """The bytes of hubtool.json: indented JSON, the same for the same record."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_record(raw: bytes) -> Record:
    """A record from the bytes of hubtool.json.

    Raises:
        RecordError: Not JSON, another schema version, an unknown field, or a value of the wrong type.
    """
    value = parse_json(raw, RECORD_FILE, error=RecordError, remedy=_RESTORE)
    failure = Failure("a record", RECORD_FILE, RecordError, _RESTORE, "cannot be read")
    schema = convert(value, _SchemaOnly, failure).schema
    if schema != SCHEMA:
        raise RecordError(
            "written by another hubtool",
            where=RECORD_FILE,
            found=f"schema {schema}",
            expected=f"schema {SCHEMA}",
            remedy="update hubtool" if schema > SCHEMA else "convert again",
        )
    record = convert(value, Record, failure)
    for file in record.files:
        if not is_inner_path(file.name):
            failure.refuse(file.name, "names a file outside its folder", "a plain file name")
    return record


_RESTORE = "restore the file"


class _SchemaOnly(msgspec.Struct):
    schema: int


def read_record(folder: Path) -> Record | None:
    """The record of a folder, or None if it has none.

    Raises:
        RecordError: See `decode_record`.
    """
    path = folder / RECORD_FILE
    return decode_record(path.read_bytes()) if path.is_file() else None


def require_record(folder: Path) -> Record:
    """The record of a folder that hubtool made.

    Raises:
        RecordError: It has none, or see `decode_record`.
    """
    record = read_record(folder)
    if record is None:
        raise RecordError("no record", where=folder, expected=RECORD_FILE, remedy="give a folder that hubtool made")
    return record


def asset_names(folder: Path) -> tuple[str, ...]:
    """Names of the pictures in a folder, `assets/*.png`, sorted: hubtool's and the publisher's own."""
    return tuple(sorted(path.relative_to(folder).as_posix() for path in (folder / ASSETS_PREFIX).glob("*.png")))
