"""The card's section on quality: how far predictions are from the source's, beside siblings and the floor."""

import msgspec

from hubtool import units
from hubtool.card.claims import current_evidence
from hubtool.card.markdown import code, escape, link
from hubtool.record import DistanceRecord, QualityRecord, Record

HEAD = ("Predictions of", "Bits", "KL divergence", "99 % below", "Same top token", "Perplexity")

FLOOR = "the source itself, in bfloat16"


def current_quality(record: Record) -> QualityRecord | None:
    """What was last measured of the files as they are, None if nothing was."""
    found = [
        each.quality
        for each in current_evidence(record)
        if each.outcome == "passed" and each.kind == "measured" and each.quality is not msgspec.UNSET
    ]
    return found[-1] if found else None


def quality_section(record: Record) -> dict[str, object] | None:
    """A row for this variant, those measured with it, the source and the floor; and what was measured how."""
    quality = current_quality(record)
    if quality is None:
        return None
    bits = units.format_bits(record.measured.effective_bits)
    rows = [(f"this variant, {code(record.recipe.name)}", bits, *_cells(quality.distance))]
    for other in quality.others:
        name = link(other.repo) if other.repo else code(other.recipe)
        rows.append((name, units.format_bits(other.effective_bits), *_cells(other.distance)))
    if quality.floor is not None:
        rows.append((FLOOR, "", *_cells(quality.floor)))
    rows.append(("the source", "", "0", "0", "100 %", _short(quality.distance.ppl_source)))
    return {"head": HEAD, "rows": rows, "how": _how(quality), "floor": _floor(quality), "experts": _experts(quality)}


def describe_limit(quality: QualityRecord) -> str:
    """What the figures do not say."""
    return (
        f"Quality was measured on {units.format_count(quality.tokens)} tokens of one text: other languages, longer "
        "contexts and what is sampled are not covered, and benchmark results of the source are not this conversion's."
    )


def _cells(distance: DistanceRecord) -> tuple[str, ...]:
    error = "" if distance.kl_stderr is None else f" ± {distance.kl_stderr:.2g}"
    return (
        f"{_short(distance.kl_mean)}{error}",
        _short(distance.kl_p99),
        f"{100 * distance.top1:.1f} %",
        _short(distance.ppl),
    )


def _short(value: float) -> str:
    return f"{value:.4g}"


def _how(quality: QualityRecord) -> str:
    text = quality.text
    commit = f" at {code(text.commit)}" if text.commit else ""
    windows = "one window" if quality.windows == 1 else f"{units.format_count(quality.windows)} windows"
    return (
        "KL divergence of the next-token distribution from the source's over the whole vocabulary, in nats: mean over "
        f"{units.format_count(quality.tokens)} tokens, ± its standard error over {windows}. Text: {escape(text.name)}"
        f"{commit}, SHA-256 {code(text.sha256)}, in windows of {units.format_count(quality.context)} tokens whose "
        f"second half is scored; token stream SHA-256 {code(quality.stream_sha256)}."
    )


def _floor(quality: QualityRecord) -> str:
    if quality.floor is None:
        return ""
    return (
        "The floor is the source held against itself with activations in bfloat16 instead of float32: a difference "
        "below it is no difference between models."
    )


def _experts(quality: QualityRecord) -> str:
    shares = [share for _, share in quality.distance.experts]
    if not shares:
        return ""
    floor = [share for _, share in quality.floor.experts] if quality.floor else []
    beside = f" ({_percent(floor)} by the floor)" if floor else ""
    return f"Of the routed experts, {_percent(shares)} were chosen as by the source{beside}, mean over the layers."


def _percent(shares: list[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.1f} %"
