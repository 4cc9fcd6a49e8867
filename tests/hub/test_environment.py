"""HF_ENDPOINT and HF_TOKEN as people set them: taken as they are meant, or refused at once, and never shown."""

import re
import sys

import huggingface_hub
import pytest

from hubtool.errors import HubError, UsageError, redact
from hubtool.hub.client import find_endpoint, make_api
from hubtool.hub.private import default_client_factory
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault
from tests.fixtures import CommandLine, Outcome
from tests.publisher import REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def path() -> str:
    """No file is sent."""
    return "xet"


@pytest.fixture
def slept(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of hubtool's own, on a Hub that the environment names."""
    made: list[float] = []
    monkeypatch.setattr("hubtool.hub.patience.time.sleep", made.append)
    monkeypatch.setenv("HF_ENDPOINT", publisher.rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", publisher.rehearsal.token)
    return made


def look(publisher: Publisher, hubtool: CommandLine) -> Outcome:
    return hubtool("upload", publisher.folder, "--to", REPO, "--dry-run")


@pytest.mark.parametrize("form", ["{}/", " {}\n", "{}//"], ids=["slash", "blanks", "slashes"])
def test_address_is_taken_as_it_is_meant(
    form: str, publisher: Publisher, slept: list[float], hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", form.format(publisher.rehearsal.endpoint))
    outcome = look(publisher, hubtool)
    assert (outcome.code, slept) == (0, []), outcome.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:8700", "localhost", "ftp://127.0.0.1", "http://127.0.0.1:port"])
def test_what_is_no_address_is_a_usage_error(
    address: str, publisher: Publisher, slept: list[float], hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    outcome = look(publisher, hubtool)
    assert (outcome.code, slept) == (2, [])
    assert f"HF_ENDPOINT: not the address of a Hub: found {address}" in outcome.stderr


@pytest.mark.parametrize("address", ["https://huggingface.co", "http://[::1]:80", "https://hub.example/prefix"])
def test_addresses_are_these(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert find_endpoint() == address
    with pytest.raises(UsageError):
        find_endpoint(f"{address} {address}")


def test_unset_address_is_the_public_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "")
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert find_endpoint() == "https://huggingface.co"


def test_token_of_a_file_with_its_line_break_is_taken(
    publisher: Publisher, slept: list[float], hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{publisher.rehearsal.token}\n")
    outcome = look(publisher, hubtool)
    assert (outcome.code, slept) == (0, []), outcome.stderr


@pytest.mark.parametrize(
    ("token", "sentence"),
    [("", "no token; run `hf auth login`"), ("abc\ndef", "cannot be sent: .*check HF_TOKEN")],
    ids=["empty", "broken"],
)
def test_token_that_is_none_is_told_at_once(
    token: str,
    sentence: str,
    publisher: Publisher,
    slept: list[float],
    hubtool: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    outcome = look(publisher, hubtool)
    assert (outcome.code, slept) == (1, [])
    assert re.search(sentence, outcome.stderr), outcome.stderr
    assert "abc" not in outcome.stderr


@pytest.mark.parametrize(
    "text",
    [
        "token hf_SECRETsecret0123456789",
        "token hf_oauth_SECRETsecret0123456789",
        "token hf_oauth_eyJSECRET0.eyJSECRET-1.SECRET_2",
        "Authorization: Bearer SECRET",
        "{'authorization': 'bearer SECRET'}",
        "for url 'https://hub.example/a/b?X-Amz-Signature=SECRET&X-Amz-Date=SECRET'",
        "PUT https://hub.example/a?Expires=1&Signature=SECRET again",
    ],
)
def test_secret_is_not_shown(text: str) -> None:
    assert "SECRET" not in redact(text)


@pytest.mark.parametrize("text", ["Did you mean X? Then say so.", "hf_xet 1.2", "https://hub.example/a/b", "a?b"])
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("path", ["lfs"])
@pytest.mark.parametrize("status", [410, 503])
def test_signed_address_is_shown_neither_in_a_wait_nor_in_an_error(
    status: int, publisher: Publisher, slept: list[float], hubtool: CommandLine
) -> None:
    publisher.rehearsal.faults.add(Fault("put", answer=Answer(status, ""), times=1000))
    outcome = hubtool("upload", publisher.folder, "--to", REPO)
    assert outcome.code == 1
    assert "/storage/object/" in outcome.stderr and not re.search(r"\?\w+=", outcome.stderr), outcome.stderr


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://anna:secret@hub.test/x", "http://*****@hub.test/x"),
        ("https://secret@hub.test", "https://*****@hub.test"),
        ("https://hub.test/a?secret", "https://hub.test/a*****"),
        ("https://hub.test/a?b=secret&c=secret", "https://hub.test/a*****"),
        ("Bearer secret", "Bearer *****"),
        ("hf_secretsecret", "*****"),
        ("why? because", "why? because"),
    ],
)
def test_secrets_are_left_out_of_every_message(text: str, kept: str) -> None:
    assert redact(text) == kept
    assert "secret" not in str(HubError("no", where=text, found=text, expected=text))


def test_endpoint_with_a_password_is_refused_without_it(hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://anna:secret@hub.test/?token=secret")
    for arguments in (["plan", "org/name", "--recipe", "native"], ["doctor"], ["inspect", "org/name", "--json"]):
        outcome = hubtool(*arguments)
        assert "secret" not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_what_is_on_this_machine_is_asked_of_no_proxy(
    variable: str, rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch, stock_client: None
) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    huggingface_hub.set_client_factory(default_client_factory)
    api = make_api(rehearsal.endpoint, rehearsal.token)
    assert api.whoami()["name"] == "rehearsal"


def test_a_socks_proxy_without_its_library_is_named(
    hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch, stock_client: None
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    huggingface_hub.set_client_factory(default_client_factory)
    refused = hubtool("verify", "org/name")
    assert (refused.code, "a SOCKS proxy, whose library is not installed" in refused.stderr) == (1, True)
