"""What a reader needs of a source: carried, or missed while planning; and what names a place on somebody's disk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import pytest

from hubtool.checkpoint.metadata import repairs, source_metadata
from hubtool.checkpoint.source import Checkpoint, LocalSource, Source
from hubtool.models.chat import choose_template
from hubtool.models.deepseek_v4_chat import CHAT, forms
from tests.checkpoints import Tensor, copied, edit_json, edit_tensors, read_tensors
from tests.fixtures import CommandLine, Samples


@pytest.fixture
def source(sample: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint to change, beside which rehearsals are kept."""
    monkeypatch.chdir(tmp_path)
    return copied(sample("mini"), tmp_path / "source")


Missed = Callable[[str], None]


@pytest.fixture
def assert_missed(source: Path, hubtool: CommandLine, tmp_path: Path) -> Missed:
    """Asserts that `plan`, `convert` and a dry run of `publish` refuse the source, and that nothing is made."""

    def check(sentence: str) -> None:
        out = tmp_path / "missed"
        for command in (
            ("plan", source, "--recipe", "native"),
            ("convert", source, "--recipe", "native", "--out", out),
            ("publish", source, "--recipe", "native", "--out", out, "--to", "me/x", "--rehearse", "--dry-run"),
        ):
            refused = hubtool(*command)
            assert (refused.code, sentence in refused.stderr) == (1, True), refused.stderr
        assert not out.exists()

    return check


@pytest.fixture
def made(source: Path, hubtool: CommandLine, tmp_path: Path) -> Any:
    """Converts the changed checkpoint; what the new folder has."""

    def make() -> dict[str, bytes]:
        outcome = hubtool("convert", source, "--recipe", "native", "--out", tmp_path / "out")
        assert outcome.code == 0, outcome.stderr
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    return make


def prune(folder: Path, name: str) -> None:
    """Let a file be a link to a blob that is gone, as a cache of downloads is pruned."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../blobs/0123")


def test_a_source_without_a_tokenizer_is_refused(source: Path, assert_missed: Missed) -> None:
    (source / "tokenizer.json").unlink()
    assert_missed("source: checkpoint without a tokenizer: found none of tokenizer.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "LICENSE", "generation_config.json"])
def test_a_link_of_a_pruned_cache_is_refused(name: str, source: Path, assert_missed: Missed) -> None:
    prune(source, name)
    assert_missed(f"{name}: link to a file that is not there")


def test_a_link_that_nothing_needs_may_lead_nowhere(source: Path, made: Any) -> None:
    prune(source, "figure.png")
    assert "figure.png" not in made()


@pytest.mark.parametrize(
    ("vocabulary", "accepted"),
    [
        (("vocab.json", "merges.txt"), True),
        (("tekken.json",), True),
        (("vocab.json",), False),
        (("tokenizer.json~",), False),
    ],
)
def test_other_tokenizers_are_known(
    vocabulary: tuple[str, ...], accepted: bool, source: Path, hubtool: CommandLine
) -> None:
    (source / "tokenizer.json").unlink()
    for name in vocabulary:
        (source / name).write_text("{}")
    assert (hubtool("plan", source, "--recipe", "native").code == 0) == accepted


@pytest.mark.parametrize("code", ["", "from .other import thing\n"])
def test_code_that_a_tokenizer_names_travels_or_is_missed(
    code: str, source: Path, made: Any, assert_missed: Missed
) -> None:
    names = {"AutoTokenizer": ["own.Slow", None], "AutoProcessor": "org/repo--elsewhere.Class"}
    edit_json(source / "tokenizer_config.json", lambda config: config.update(auto_map=names))
    if code:
        (source / "own.py").write_text(code)
    missed = "other.py" if code else "own.py"
    assert_missed(f"names code that is not there: found no {missed}")
    (source / "own.py").write_text(code)
    (source / "other.py").write_text("thing = 1\n")
    assert {"own.py"} | ({"other.py"} if code else set()) <= made().keys()


def test_pytorch_code_that_the_config_names_is_left_out(source: Path, made: Any) -> None:
    names = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    edit_json(source / "config.json", lambda config: config.update(auto_map=names))
    (source / "modeling.py").write_text("import torch\n")
    files = made()
    assert "modeling.py" not in files and "auto_map" not in json.loads(files["config.json"])


LICENSES = ("license.txt", "COPYING", "Licence.md", "MODEL_LICENSE", "LICENSE-MODEL", "NOTICE", "USE_POLICY.md")


def test_terms_travel_whatever_they_are_called_and_backups_do_not(source: Path, made: Any) -> None:
    (source / "LICENSE").unlink()
    front = "---\nlicense: other\nlicense_name: mine\nlicense_link: ./terms.html\n---\n"
    (source / "README.md").write_text(front)
    backups = ("LICENSE~", "COPYING.bak", "tokenizer.json.orig", "tokenizer_config.bak.json", "#tokenizer.json#")
    for name in (*LICENSES, *backups, "terms.html", "licensed_to.csv"):
        (source / name).write_text("Terms.\n")
    files = made()
    assert {*LICENSES, "terms.html"} <= files.keys()
    assert not files.keys() & {*backups, "licensed_to.csv"}


def test_a_dead_link_to_a_license_is_left_out_and_said(source: Path, hubtool: CommandLine, made: Any) -> None:
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: x\nlicense_link: gone.txt\n---\n")
    planned = hubtool("plan", source, "--recipe", "native")
    assert "license_link names gone.txt, which the source does not have" in planned.stderr
    assert b"gone.txt" not in made()["README.md"]


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_place_on_a_disk_that_a_source_names_is_no_dead_end(
    file: str, source: Path, hubtool: CommandLine, made: Any
) -> None:
    edit_json(source / file, lambda config: config.update(_name_or_path="/mnt/data/x/ckpt", name_or_path="org/model"))
    planned = hubtool(
        "publish", source, "--recipe", "native", "--validate", "none", "--to", "me/x", "--rehearse", "--dry-run"
    )
    assert (planned.code, f"{file}: a place on a disk" in planned.stderr) == (0, True), planned.stderr
    written = json.loads(made()[file])
    assert "_name_or_path" not in written and written["name_or_path"] == "org/model"


def test_private_information_in_a_source_is_found_before_the_work(
    source: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    (source / "NOTICE").write_text("Trained by /home/annabell/train.py\n")
    for more in (("--dry-run",), (), ("--stream",)):
        refused = hubtool(
            "publish",
            source,
            "--recipe",
            "native",
            "--validate",
            "none",
            "--to",
            "me/x",
            "--rehearse",
            "--out",
            tmp_path / "x",
            *more,
        )
        assert (refused.code, "NOTICE, line 1: path '/home/annabell/train.py'" in refused.stderr) == (1, True)
    assert not list(tmp_path.glob("x/*.safetensors"))


WIDTHS = {"BF16": ("<u2", 0x7F80, 0xFFC1), "F32": ("<u4", 0x7F800000, 0xFFC00001)}


@pytest.mark.parametrize("recipe", ["native", "mixed_3_6", "float32"])
@pytest.mark.parametrize(
    "name", ["norm.weight", "layers.0.attn.attn_sink", "layers.2.attn.compressor.ape", "hc_head_fn"]
)
@pytest.mark.parametrize("is_nan", [False, True])
def test_what_is_not_finite_stops_the_conversion_however_it_is_stored(
    recipe: str, name: str, is_nan: bool, source: Path, hubtool: CommandLine, tmp_path: Path
) -> None:
    found = read_tensors(source)
    assert name in found, [each for each in found if "ape" in each]

    def change(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[name]
        integer, infinity, nan = WIDTHS[tensor.dtype]
        values = np.frombuffer(tensor.data, integer).copy()
        values[-1] = nan if is_nan else infinity
        tensors[name] = Tensor(tensor.dtype, tensor.shape, values.tobytes(), tensor.file)

    edit_tensors(source, change)
    refused = hubtool("convert", source, "--recipe", recipe, "--out", tmp_path / "out")
    assert (refused.code, f"{name}: not finite" in refused.stderr) == (1, True), refused.stderr
    assert not (tmp_path / "out" / "hubtool.json").exists()


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: mit\nlanguage: no\n", {"license": "mit", "language": "no"}),
        ("license: mit\nlanguage: [en, no, zh-Hans]\n", {"license": "mit", "language": ["en", "no"]}),
        ("license: Apache 2.0\n", {"license": "other", "license_name": "Apache 2.0"}),
        ("license: other\nlicense_name: 3.10\n", {"license": "other", "license_name": "3.10"}),
        ("license: mit\nlicense_link: gone.txt\n", {"license": "mit"}),
    ],
)
def test_front_matter_on_the_hub_is_repaired_and_said(
    front: str, expected: dict[str, object], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "README.md").write_text(f"---\n{front}---\n")
    local = LocalSource(source)

    class OnTheHub(Checkpoint):
        """The same files, which nobody can correct."""

        name, identity, files, shards = "org/odd", local.identity, local.files, local.shards
        read_file = local.read_file

    remote = cast("Source", OnTheHub())
    assert source_metadata(remote) == expected
    said = list(repairs(remote))
    assert bool(said) == ("gone" not in front)
    assert all(each.startswith("hub:org/odd: its card has ") for each in said)


APRIL, LATER = forms()
_TEXTS = [re.findall(r"effort_prefix\(\) -%\}\n(.*?)\n\{\{-", form.template.decode(), re.DOTALL) for form in forms()]
ABSOLUTE, BEYOND = _TEXTS[0][0], _TEXTS[1][0]
ENCODERS = {
    "April": (f'REASONING_EFFORT_MAX = """{ABSOLUTE}\n\n"""\n', APRIL),
    "0731": (f"REASONING_EFFORT_PROMPTS = {dict(low='', high=ABSOLUTE, max=BEYOND)!r}\n", LATER),
    "0731 by its name": ("REASONING_EFFORT_PROMPTS = load()\n", LATER),
    "neither": ('REASONING_EFFORT_MAX = "Reasoning Effort: As you like."\n', APRIL),
    "not Python": ("def (", APRIL),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_shipped_template_follows_the_sources_encoder(encoder: str, source: Path, made: Any) -> None:
    text, form = ENCODERS[encoder]
    (source / "encoding").mkdir()
    (source / "encoding" / "encoding_dsv4.py").write_text(text)
    files = made()
    assert files["chat_template.jinja"] == form.template
    card = files["README.md"].decode()
    assert f"hubtool's, of {form.name}: the source has none" in card
    assert ("compare before you rely on it" in card) == (encoder in ("neither", "not Python"))


def test_the_keys_of_0731_choose_where_there_is_no_encoder(
    sample: Samples, hubtool: CommandLine, tmp_path: Path
) -> None:
    assert hubtool("convert", sample("r0731_like"), "--recipe", "native", "--out", tmp_path / "x").code == 0
    assert (tmp_path / "x" / "chat_template.jinja").read_bytes() == LATER.template
    card = (tmp_path / "x" / "README.md").read_text()
    assert "DSpark" in card and "multi-token" not in card.lower()


OWN = "{{ '<｜User｜>' }}{% generation %}{{ messages }}{% endgeneration %}{{ '<｜Assistant｜>' }}"


@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_a_sources_own_template_is_kept(place: str, source: Path, made: Any) -> None:
    if place == "file":
        (source / "chat_template.jinja").write_text(OWN)
    else:
        value = OWN if place == "config" else [{"name": "default", "template": OWN}]
        edit_json(source / "tokenizer_config.json", lambda config: config.update(chat_template=value))
    files = made()
    assert files.get("chat_template.jinja", b"").decode() == (OWN if place == "file" else "")
    assert "| Chat template | the source's own |" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("own", "why"),
    [("{% if", "is not a template"), ("[INST]{{ messages }}[/INST]", "is another model's"), ("0731", "is of")],
)
def test_a_template_that_is_known_to_be_wrong_is_replaced_and_said(own: str, why: str, source: Path, made: Any) -> None:
    (source / "chat_template.jinja").write_bytes(LATER.template if own == "0731" else own.encode())
    files = made()
    assert files["chat_template.jinja"] == APRIL.template
    assert f"the source's own {why}" in files["README.md"].decode().replace("\\", "")


@pytest.mark.parametrize(
    ("effort", "begins"),
    [(None, ""), ("low", ""), ("medium", ""), ("high", ABSOLUTE), ("xhigh", ABSOLUTE), ("max", BEYOND)],
)
def test_the_efforts_of_0731(effort: str | None, begins: str) -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = pytest.fail
    template = environment.from_string(LATER.template.decode())
    messages = [{"role": "user", "content": "Hi"}]
    bos = "<｜begin▁of▁sentence｜>"
    options = {"messages": messages, "add_generation_prompt": True, "bos_token": bos, "thinking": True}
    prompt = template.render(**options, reasoning_effort=effort)
    prefix = f"{begins}\n\n" if begins else ""
    assert prompt == f"{bos}{prefix}<｜User｜>Hi<｜Assistant｜><think>"


def test_a_model_without_known_formats_keeps_its_own_or_has_none() -> None:
    assert choose_template(None, {}, None, None).reason == "none: the source has none"
    assert choose_template(None, {}, "{{ messages }}", None).template is None
    assert choose_template(CHAT, {}, None, None).template == APRIL.template
