"""The card as prose: goldens for each kind of outcome, and the seed's facts among hubtool's."""

import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from inline_snapshot import external_file

from hubtool.card import render_card
from hubtool.card.view import PICTURES
from hubtool.errors import UsageError
from hubtool.plan.recipe import load_recipe
from hubtool.record import CacheRecord, Record, SiblingRecord, encode_record
from tests.card.records import BASE, COMMIT, OUTCOMES, REPO, SEED_EVIDENCE, SEED_NOTES, TOOLING, evidence, with_evidence
from tests.fixtures import Conversions

SEED_FACTS = (
    "deepseek-ai/DeepSeek-V4-Flash",
    COMMIT,
    "DeepseekV4ForCausalLM",
    "deepseek_v4",
    "Thump604/mlx-lm, branch deepseek-v4-support-fixes",
    "9c990f4",
    "`mixed_3_6`",
    "| Quantization mode | affine |",
    "| Group size | 128 |",
    "| Effective bits per weight | 3.808 |",
    "| Shards | 28 |",
    "135,346,422,876 bytes",
    "The routed experts, which hold most of the parameters, go to 3 bits.",
    "embeddings and head, attention projections, compressor and indexer, shared experts, and the routed experts' "
    "down_proj in the sensitive layers",
    "| Conversion | passed |",
    "Lazy MLX load completed successfully. | Mac Studio, Apple silicon, 128 GB",
    "one token was attempted; memory pressure and swap activity exceeded the local safety boundary",
    "not generation-qualified",
    "FP4 and FP8 weights were decoded exactly",
    "E8M0 scales is the raw exponent",
    *SEED_NOTES.splitlines(),
    "Model size 284B params",
    *(f"| Tensor type {dtype} |" for dtype in ("BF16", "U32", "F32", "I64")),
    "| 4-bit |",
    "| MLX |",
)
"""What the first conversion's card and page say, the publisher's local path left out."""


def normalized(card: str) -> str:
    """The card without what every change of a template changes."""
    return re.sub(r"<!-- hubtool:card .* -->", "<!-- hubtool:card VERSION -->", card)


def section(card: str, heading: str) -> str:
    """What stands from a heading to the next, the places for prose left out."""
    (text,) = [text for text in re.split(r"(?m)^(?=##? )", card) if text.startswith(heading)]
    return re.sub(r"(?m)^<!-- .* -->\n+", "", text)


@pytest.fixture
def seed(flash: Record) -> str:
    """The card of the first conversion of Flash."""
    return render_card(with_evidence(flash, *SEED_EVIDENCE), prose={"notes": SEED_NOTES})


def test_the_whole_card_reads_as_its_golden_does(seed: str) -> None:
    assert normalized(seed) == external_file("golden/seed.md", format=".txt")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_kind_of_outcome_reads_as_its_golden_does(flash: Record, outcome: str) -> None:
    card = render_card(with_evidence(flash, *OUTCOMES[outcome]))
    assert f"{section(card, '# ')}\n{section(card, '## Validation')}" == external_file(
        f"golden/{outcome}.md", format=".txt"
    )


def test_the_card_states_every_fact_of_the_first_conversions_card(seed: str) -> None:
    assert [fact for fact in SEED_FACTS if fact not in seed] == []


def test_the_card_holds_no_path_of_the_publishers_machine(seed: str) -> None:
    assert "/Volumes" not in seed


def test_the_same_record_gives_the_same_bytes(flash: Record) -> None:
    assert render_card(flash) == render_card(flash)


def test_evidence_about_other_files_is_not_on_the_card(flash: Record) -> None:
    record = with_evidence(flash, *OUTCOMES["qualified"])
    first, *rest = record.files
    changed = msgspec.structs.replace(record, files=(msgspec.structs.replace(first, sha256="0" * 64), *rest))
    assert "converted, load-validated and generation-qualified" in render_card(record)
    assert "converted, not generation-qualified" in render_card(changed)


def test_files_that_were_found_changed_have_no_evidence_but_that(flash: Record) -> None:
    qualified = with_evidence(flash, *OUTCOMES["qualified"])
    shard = flash.files[-1]
    detail = f"{shard.name}: sha256 {'c' * 64}, hubtool.json says {shard.sha256}"
    look = evidence("integrity", "failed", detail, figures={"tensors": 2610, "files": 33}, subject="c" * 64)
    card = render_card(msgspec.structs.replace(qualified, evidence=(*qualified.evidence, look)))
    assert f"{section(card, '# ')}\n{section(card, '## Validation')}" == external_file(
        "golden/changed.md", format=".txt"
    )
    again = msgspec.structs.replace(look, outcome="passed", subject=flash.subject)
    restored = msgspec.structs.replace(qualified, evidence=(*qualified.evidence, look, again))
    assert "converted, load-validated and generation-qualified" in render_card(restored)


def test_a_failed_integrity_of_the_same_bytes_takes_the_claims_back(flash: Record) -> None:
    look = evidence("integrity", "failed", "model.norm.weight: 1 of 4,096 values not finite")
    card = render_card(with_evidence(flash, *OUTCOMES["qualified"], look))
    assert "Treat this artifact as converted, not generation-qualified." in card
    assert "nothing is claimed of them: model.norm.weight: 1 of 4,096 values not finite." in card
    assert "| Integrity | failed |" in card


@pytest.mark.parametrize("outcome", ["refused_preflight", "aborted_by_guard", "not_run"])
def test_what_is_no_verdict_takes_none_back(flash: Record, outcome: str) -> None:
    (*_, passed) = OUTCOMES["qualified"]
    later = msgspec.structs.replace(passed, outcome=outcome, detail="no room")
    assert "generation-qualified on 512 GB" in render_card(with_evidence(flash, passed, later))
    assert "not generation-qualified" in render_card(with_evidence(flash, later))


def test_later_evidence_of_one_machine_replaces_earlier(flash: Record) -> None:
    (*_, passed) = OUTCOMES["qualified"]
    failed = msgspec.structs.replace(passed, outcome="failed", detail="not finite")
    card = render_card(with_evidence(flash, passed, failed))
    assert "not generation-qualified" in card
    assert "| Generation, resident | passed |" not in card


def test_a_stated_generation_qualifies_nothing(flash: Record) -> None:
    (*_, passed) = OUTCOMES["qualified"]
    card = render_card(with_evidence(flash, msgspec.structs.replace(passed, kind="stated")))
    assert "Treat this artifact as converted, not generation-qualified." in card
    assert "is stated by the publisher, not measured" in card


def test_the_machines_table_follows_weights_and_cache(flash: Record) -> None:
    card = render_card(flash)
    assert "| Mac with 128 GB (92.16 GiB usable) | no | no | no |" in card
    assert "| Mac with 192 GB (138.24 GiB usable) | yes | yes | yes |" in card
    big = (CacheRecord(tokens=4096, nbytes=10**9), CacheRecord(tokens=131072, nbytes=20 * 10**9))
    longer = msgspec.structs.replace(flash, plan=msgspec.structs.replace(flash.plan, cache=big))
    assert "| Mac with 192 GB (138.24 GiB usable) | yes | no |" in render_card(longer)


def test_the_smallest_machine_is_said_with_the_conversation_that_it_holds(flash: Record) -> None:
    assert "The smallest Mac that holds it with a conversation of 4k tokens has 192 GB." in render_card(flash)
    huge = msgspec.structs.replace(flash, measured=msgspec.structs.replace(flash.measured, nbytes=10**12))
    assert "No Mac holds it, not even with a conversation of 4k tokens." in render_card(huge)


def test_the_hashes_of_the_source_stand_last_in_their_section(seed: str) -> None:
    assert section(seed, "## Source").rstrip().endswith("</details>")


def test_a_streamed_generation_says_what_memory_it_took(flash: Record) -> None:
    card = render_card(with_evidence(flash, *OUTCOMES["streamed"]))
    assert "it generated in 9.88 GB (9.20 GiB) of memory (AMD EPYC 9654, 16 GB, Linux 6.12)." in card
    assert "Streamed from disk" not in render_card(flash)


def test_a_repo_that_is_not_decided_gets_commands_for_the_folder(flash: Record) -> None:
    card = render_card(msgspec.structs.replace(flash, repo=None))
    assert REPO not in card
    assert "mlx_lm.generate --model . --trust-remote-code" in card
    assert "hubtool inspect ." in card


def test_a_tested_mlx_lm_is_pinned(flash: Record) -> None:
    assert 'pip install "mlx-lm==0.32.2"' in render_card(with_evidence(flash, *OUTCOMES["loaded"]))
    assert 'pip install "mlx-lm>=0.32"' in render_card(with_evidence(flash, *SEED_EVIDENCE))
    assert TOOLING in render_card(with_evidence(flash, *SEED_EVIDENCE))


def test_a_recipe_of_ones_own_is_written_out_of_the_record_first(flash: Record, tmp_path: Path) -> None:
    text = flash.recipe.text + "# größer\n"
    mine = msgspec.structs.replace(
        flash.recipe, name="mine", text=text, sha256=hashlib.sha256(text.encode()).hexdigest()
    )
    record = msgspec.structs.replace(flash, recipe=mine)
    lines = section(render_card(record), "## Reproduce").split("\n")
    assert f"hf download {REPO} hubtool.json --local-dir ." in lines
    (write,) = [line for line in lines if line.startswith("python -c ")]
    (tmp_path / "hubtool.json").write_bytes(encode_record(record))
    subprocess.run([sys.executable, *shlex.split(write)[1:]], cwd=tmp_path, check=True)
    assert load_recipe(str(tmp_path / "mine.toml")).sha256 == mine.sha256
    assert any("--recipe ./mine.toml --out" in line for line in lines)


def test_a_recipe_of_hubtools_own_goes_by_its_name(flash: Record) -> None:
    reproduce = section(render_card(flash), "## Reproduce")
    assert "--recipe mixed_3_6 --out" in reproduce
    assert "python -c" not in reproduce
    assert "`pip install 'mlx[cpu]==0.32.4'`" in reproduce


def test_siblings_are_listed_with_bits_and_bytes(flash: Record) -> None:
    sibling = SiblingRecord(repo="someone/V4-mixed_2_6", recipe="mixed_2_6", nbytes=10**11, effective_bits=2.9)
    card = render_card(msgspec.structs.replace(flash, siblings=(sibling,)))
    assert (
        "[someone/V4-mixed_2_6](https://huggingface.co/someone/V4-mixed_2_6) | `mixed_2_6` | 2.900 | 100.00 GB" in card
    )


def test_measured_error_stands_in_the_table(converted: Conversions) -> None:
    card = render_card(converted("tiny", "mixed_3_6").record)
    assert re.search(r"\| routed experts \| .* \| \d\.\d\de-0\d \|", card)
    assert "over one row in" in card


def test_only_pictures_that_are_there_are_shown(flash: Record) -> None:
    card = render_card(flash, assets=["assets/bits.png"])
    assert f"![{PICTURES['assets/bits.png']}](assets/bits.png)" in card
    assert "assets/bytes.png" not in card


def test_a_template_of_ones_own_goes_before_the_one_of_the_same_name(flash: Record, tmp_path: Path) -> None:
    (tmp_path / "limits.md.jinja").write_text("## Limits\n\nNone but these: {{ limits | length }}.\n")
    card = render_card(flash, tmp_path)
    assert "None but these: 3." in card
    assert "## Source" in card


def test_a_template_that_asks_for_what_does_not_exist_is_refused(flash: Record, tmp_path: Path) -> None:
    (tmp_path / "limits.md.jinja").write_text("{{ limits.none }} {{ invented }}")
    with pytest.raises(UsageError, match="asks for what does not exist"):
        render_card(flash, tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"\n{{ 1 / 0 }}", "limits.md.jinja, line 2: template fails: found division by zero"),
        (b"{{ limits() }}", "limits.md.jinja, line 1: template fails: found 'list' object is not callable"),
        (b"{{ limits | sum }}", "limits.md.jinja, line 1: template fails"),
        (b"\n\n{{ invented }}", "limits.md.jinja, line 3: template asks for what does not exist"),
        (b"{% endif %}", "limits.md.jinja, line 1: template cannot be read"),
        (b"{% include 'nothing' %}", "nothing: no such template"),
        (b"{{ '%d' | format('x') }}", "limits.md.jinja, line 1: template fails"),
        ("Größe".encode("latin-1"), "limits.md.jinja: not UTF-8"),
    ],
)
def test_a_template_that_fails_is_named_with_its_line(
    text: bytes, sentence: str, flash: Record, tmp_path: Path
) -> None:
    (tmp_path / "limits.md.jinja").write_bytes(text)
    with pytest.raises(UsageError) as refused:
        render_card(flash, tmp_path)
    assert sentence in str(refused.value)


def test_metadata_comes_from_the_allow_list(flash: Record) -> None:
    carried = {"license": "other", "license_name": "deepseek", "license_link": "LICENSE", "model-index": ["theirs"]}
    source = msgspec.structs.replace(flash.source, metadata=carried)
    card = render_card(msgspec.structs.replace(flash, source=source))
    assert card.startswith("---\nlicense: other\nlicense_name: deepseek\nlicense_link: LICENSE\nlibrary_name: mlx\n")
    assert "theirs" not in card
    assert f"base_model: {BASE}\nbase_model_relation: quantized\n" in card


def test_card_says_which_hashes_of_the_source_nobody_has_checked(flash: Record) -> None:
    assert "Hashes not checked" not in render_card(flash)
    name = flash.source.files[-1].name
    source = msgspec.structs.replace(flash.source, unverified=(name,))
    card = render_card(msgspec.structs.replace(flash, source=source))
    assert f"| Hashes not checked | `{name}`: read in part straight from the Hub" in card
