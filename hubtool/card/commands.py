"""The commands of a card: to run, reproduce and verify, and how to cite."""

import re
import shlex

from hubtool import units
from hubtool.card.claims import current_evidence, describe_versions, known
from hubtool.card.markdown import code, fenced, link
from hubtool.card.tables import Section
from hubtool.hub.rules import is_repo_id
from hubtool.record import RECORD_FILE, Evidence, Record
from hubtool.resources import recipes_dir, with_base

STATISTICS_FILE = "statistics.safetensors"
"""What a card's commands call the file of statistics; the record has its SHA-256."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)
_PLAIN_VERSION = re.compile(r"\d+(?:\.\d+)*(?:[a-z]+\d+)*")


def loaded_with(record: Record) -> Evidence | None:
    """The evidence that these files were loaded or run with an mlx-lm whose version is known; measured goes first."""
    passed = [
        item
        for item in current_evidence(record)
        if item.check != "integrity" and item.outcome == "passed" and "mlx-lm" in item.versions
    ]
    return max(passed, key=lambda item: (item.kind == "measured", item.started), default=None)


def run_section(repo: str | None, model_file: str | None, tested: Evidence | None) -> Section:
    """How to run a repo whose model code is in `model_file`, if mlx-lm has none; a folder if it has no repo."""
    trust = " --trust-remote-code" if model_file else ""
    model = repo if repo and is_repo_id(repo) else "."
    version = tested.versions["mlx-lm"] if tested else ""
    pinned = f'"mlx-lm=={version}"' if _PLAIN_VERSION.fullmatch(version) else '"mlx-lm>=0.32"'
    options = ", trust_remote_code=True" if model_file else ""
    return {
        "tested": tested and known(describe_versions({"mlx-lm": version}), tested.kind),
        "model_file": model_file and code(model_file),
        "folder": model == ".",
        "hub_snippet": code(f'mlx_lm.load("{model}")'),
        "commands": fenced(
            [
                f"pip install {pinned}",
                f"mlx_lm.generate --model {model}{trust} --max-tokens 256 --prompt 'Why is the sky blue?'",
                f"mlx_lm.chat --model {model}{trust}",
                f"mlx_lm.server --model {model}{trust}",
            ],
            "sh",
        ),
        "python": fenced(
            [
                "from mlx_lm import generate, load",
                "",
                f'model, tokenizer = load("{model}"{options})',
                'messages = [{"role": "user", "content": "Why is the sky blue?"}]',
                "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
                "print(generate(model, tokenizer, prompt, max_tokens=256))",
            ],
            "python",
        ),
    }


def reproduce_section(record: Record) -> Section:
    """How to make the files again, if the source is known, and how to check them."""
    verify = f"hubtool verify {record.repo}" if record.repo and is_repo_id(record.repo) else "hubtool inspect ."
    return {
        "conversion": _conversion(record),
        "backend": code(f"pip install 'mlx[cpu]=={record.versions.get('mlx', '')}'"),
        "plan": code(record.plan.digest),
        "verify": fenced([verify], "sh"),
        "files": units.format_count(len(record.files)),
    }


def _conversion(record: Record) -> str | None:
    source = record.source
    lines, recipe = _recipe(record)
    versions = {name: record.versions.get(name, "") for name in ("hubtool", "mlx")}
    if not source.repo or not is_repo_id(source.repo) or not all(map(_PLAIN_VERSION.fullmatch, versions.values())):
        return None
    revision = f"@{source.commit}" if source.commit else ""
    options = f"--recipe {shlex.quote(recipe)}" + (f" --statistics {STATISTICS_FILE}" if record.fit else "")
    out = (record.repo or f"{source.repo}-{record.recipe.name}").rpartition("/")[2]
    return fenced(
        [
            f"pip install {' '.join(f'{name}=={version}' for name, version in versions.items())}",
            *lines,
            f"hubtool convert {source.repo}{revision} {options} --out {shlex.quote(out)}",
        ],
        "sh",
    )


def _recipe(record: Record) -> tuple[list[str], str]:
    """The commands that write a recipe to a file, none for one that comes with hubtool; and what to call it."""
    recipe = record.recipe
    name = recipe.name if _PLAIN_NAME.fullmatch(recipe.name) else "recipe"
    own = recipes_dir() / f"{name}.toml"
    if own.is_file() and with_base(own.read_bytes().decode()) == recipe.text:
        return [], name
    fetched = record.repo and is_repo_id(record.repo)
    fetch = [f"hf download {record.repo} {RECORD_FILE} --local-dir ."] if fetched else []
    text = f"json.load(open('{RECORD_FILE}', encoding='utf-8'))['recipe']['text']"
    write = f"open('{name}.toml', 'w', encoding='utf-8', newline='').write({text})"
    return [*fetch, f'python -c "import json; {write}"'], f"./{name}.toml"


def citation_section(record: Record) -> Section | None:
    """Whose model it is, None if that is not known."""
    repo = record.source.repo
    if repo is None:
        return None
    org, _, name = repo.partition("/")
    key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    lines = [
        f"@misc{{{key},",
        f"  title  = {{{_bibtex(name)}}},",
        f"  author = {{{{{_bibtex(org)}}}}},",
        f"  url    = {{https://huggingface.co/{_bibtex(repo)}}},",
    ]
    if record.source.commit:
        lines.append(f"  note   = {{revision {record.source.commit}}},")
    return {"source": link(repo), "bibtex": fenced([*lines, "}"], "bibtex")}


def _bibtex(text: str) -> str:
    return re.sub(r"[{}\\\s]+", " ", text)
