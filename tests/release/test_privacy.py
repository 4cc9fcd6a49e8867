"""What must not be published is found, with its line; what may be is let through."""

from pathlib import Path

import pytest

from hubtool.errors import OutputError
from hubtool.hub.upload import published_names
from hubtool.release.privacy import Identity, read_identity, require_private, scan_folder, scan_text, scan_warnings
from tests.fixtures import Conversions

NOBODY = Identity(frozenset(), frozenset())
ANNA = Identity(frozenset({"annabell"}), frozenset({"annas-laptop", "annas-laptop.local"}))

LEAKS = {
    "/Users/annabell/models": "path",
    "/home/anna": "path",
    "/Volumes/Lexar/mlx_models/V4": "path",
    "/private/var/folders/x1": "path",
    "/tmp/out": "path",
    "C:\\Users\\Anna\\models": "path",
    "~/models/v4": "path",
    "\\\\server\\share": "path",
    "file:///opt/model": "path",
    '"/data/models/V4"': "path",
    "/opt/models": "path",
    "--out=/workspace/out": "path",
    "**/home/anna/x**": "path",
    "cache: /srv/hf": "path",
    "server:/nas/x": "path",
    "`/var/lib/x`": "path",
    "/etc/passwd": "path",
    "-I/home/anna/x": "path",
    "C:\\\\new\\\\models": "path",
    "hf_" + "a1B2" * 8: "token",
    "ghp_" + "a1B2" * 9: "token",
    "sk-" + "a1B2" * 8: "token",
    "AKIA" + "A1B2" * 4: "token",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "token",
    "Authorization: Bearer " + "a1B2" * 8: "token",
    "https://anna:secret@example.org/": "token",
    "10.1.2.3": "private address",
    "172.16.0.9": "private address",
    "192.168.178.20": "private address",
    "169.254.1.1": "private address",
    "http://192.168.1.10:8000/v1": "private address",
    "10.0.0.5:8080": "private address",
    "server:10.0.0.5": "private address",
    "10.0.0.0/24": "private address",
    "::ffff:192.168.0.1": "private address",
    "http://[fd12::1]:8080": "private address",
    "fe80::1c2b:3aff:fe4d:5e6f": "private address",
    "fd12:3456:789a::1": "private address",
    "by Annabell": "user name",
    "on annas-laptop.local": "host name",
}

HARMLESS = [
    "https://huggingface.co/home/page",
    "/usr/bin/env python3",
    "model.layers.0.attn",
    "127.0.0.1",
    "8.8.8.8",
    "mlx 0.32.4.1",
    "12:30:45",
    "annabella",
    "and/or, his/home/s, 1/Users",
    "hf_hub",
    "sk-learn",
    "::",
    "a ~ b / c",
    "2>/dev/null",
    "/usr/local/bin/python3",
    "fetched into ~/.cache/huggingface/hub",
    "hubtool convert /path/to/model",
    "https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash/resolve/main/config.json",
    "'Q:\\nfoo\\nA:'",
    "</summary></details>",
    "**/templates/*.jinja",
    "f'{root}/blobs/{name}'",
    "127.0.0.1:8000/v1",
    "POST to /v1/completions",
    "std::vector<int>",
    '{"bits": 4, "group_size": 128}',
]


@pytest.mark.parametrize("text", LEAKS)
def test_what_must_not_be_published_is_found(text: str) -> None:
    leaks = list(scan_text("config.json", f"first\n  x = {text!s}, more", ANNA))
    assert LEAKS[text] in {leak.kind for leak in leaks}
    assert {(leak.file, leak.line) for leak in leaks} == {("config.json", 2)}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_may_be_published_is_let_through(text: str) -> None:
    assert list(scan_text("README.md", text, ANNA)) == []


def test_a_token_is_not_repeated_in_the_message() -> None:
    token = "hf_" + "a1B2" * 8
    (leak,) = scan_text("notes.txt", token, NOBODY)
    assert str(leak) == "notes.txt, line 1: token 'hf_a1B...'"


def test_a_name_that_is_public_anyway_may_be_published() -> None:
    assert list(scan_text("README.md", "annabell/V4", ANNA.without(["Annabell/V4"]))) == []


def test_a_vocabulary_may_hold_any_word_but_no_path() -> None:
    assert list(scan_text("tokenizer.json", '"/src/main": 8', ANNA)) == []
    assert list(scan_text("tokenizer.json", '"annabell": 7', ANNA)) == []
    assert [leak.kind for leak in scan_text("tokenizer.json", '"/Users/annabell/x"', ANNA)] == ["path"]


def test_names_that_name_nobody_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert read_identity() == NOBODY


def test_what_hubtool_makes_tells_nothing(converted: Conversions) -> None:
    made = converted("tiny", "mixed_3_6")
    assert scan_folder(made.folder, published_names(made.record), read_identity()) == ()


def test_publishing_is_refused_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{\n  "_name_or_path": "/Users/annabell/V4"\n}\n')
    with pytest.raises(OutputError, match=r"config.json, line 2: path '/Users/annabell/V4'"):
        require_private(tmp_path, ["config.json"])


ESCAPED = {
    "a.json": b'{"x": "\\u002fhome\\u002fannabell\\u002fmodels"}',
    "b.json": b'{"\\u0068f_' + b"a1B2" * 8 + b'": 1}',
    "c.toml": b'x = "\\u002Fhome\\u002Fannabell"',
    "d.yaml": b'x: "\\x2fhome\\x2fannabell"',
    "README.md": b'---\nx: "\\x2fhome\\x2fannabell"\n---\n',
    "e.txt": "/home/annabell/x".encode("utf-16"),
    "f.bin": "/home/annabell/models and more of it".encode("utf-16-le"),
    "g.png": b"/home/annabell",
    "h": b"\xef\xbb\xbf/home/annabell",
    "i.jsonl": b'{}\n{"x": "\\/home\\/annabell"}\n',
}


@pytest.mark.parametrize("name", ESCAPED)
def test_what_a_reader_would_see_is_looked_through(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ESCAPED[name])
    assert {leak.kind for leak in scan_folder(tmp_path, [name], ANNA)} & {"path", "token"}


def test_pictures_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR /home/annabell")
    assert scan_folder(tmp_path, ["a.png"], ANNA) == ()


def test_what_may_be_meant_is_remarked() -> None:
    files = {
        "NOTES": b"Write to anna@lab.example.org, or see build.corp.internal.",
        "config.json": b'{"auto_map": {"AutoModel": "someone\\/code--modeling.Model"}}',
        "LICENSE": b"Copyright anna@lab.example.org",
        "a.py": b"self.local = model.home(x); import os.path; x@y; a.local.b = 1",
    }
    found = [(each.file, each.kind, each.found) for each in scan_warnings(files.items())]
    assert found == [
        ("NOTES", "mail address", "anna@lab.example.org"),
        ("NOTES", "internal host", "build.corp.internal"),
        ("config.json", "code of another repo that a reader would fetch and run", "someone/code--modeling.Model"),
    ]
