"""Answers that no Hub gives: asked again, and named with their address if they stay so."""

import json

import httpx2
import pytest

from hubtool.checkpoint.remote import HubSource
from hubtool.errors import HubError
from hubtool.hub.answers import AnswerError, check_answer
from hubtool.rehearsal import RehearsalHub
from hubtool.rehearsal.faults import Answer, Fault, Faults
from tests.checkpoint.repo import REPO
from tests.fixtures import CommandLine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.usefixtures("client"),
    pytest.mark.slow,
]

ODD = {
    "page": Answer(200, body="<html>Sign in to the network</html>"),
    "nothing of it": Answer(200, body="{}"),
    "cut off": Answer(200, body='[{"type": "file", "path": "config.js'),
    "empty": Answer(200, body=""),
    "not UTF-8": Answer(200, body='{"id": "\\ud800"}'),
    "599": Answer(599, body="<html>Network connect timeout error</html>"),
}


@pytest.mark.parametrize("stage", ["info", "tree"])
@pytest.mark.parametrize("name", [name for name in ODD if name != "599"])
def test_answer_of_a_gateway_is_asked_again(faults: Faults, stage: str, name: str) -> None:
    faults.add(Fault(stage, answer=ODD[name]))
    assert HubSource(REPO).files
    assert faults.waiting[0].struck == 1


def test_gateway_that_stays_is_named_with_its_address(
    faults: Faults, filled_hub: RehearsalHub, hubtool: CommandLine
) -> None:
    faults.add(Fault("info", answer=ODD["page"], times=1000))
    outcome = hubtool("plan", REPO, "--recipe", "mixed_3_6")
    assert (outcome.code, outcome.stdout) == (1, "")
    expected = f"GET {filled_hub.endpoint}/api/models/{REPO}: the answer is not one of a Hub: found status 200,"
    assert expected in outcome.stderr and "a page in HTML" in outcome.stderr and "HF_ENDPOINT" in outcome.stderr


def test_status_that_no_hub_gives_is_no_traceback(faults: Faults) -> None:
    faults.add(Fault("info", answer=ODD["599"], times=1000))
    with pytest.raises(HubError, match="the Hub refused: found <html>Network connect"):
        HubSource(REPO)


TREE = "http://hub.test/api/models/a/b/tree/main"
INFO = "http://hub.test/api/models/a/b/revision/main"
FILE = {"type": "file", "path": "a", "oid": "0" * 40, "size": 1}
ENDLESS = {"Link": f'<{TREE}?cursor=2>; rel="next"'}

REFUSED = {
    "a path out of the repo": (TREE, [FILE | {"path": "../a"}], {}),
    "an absolute path": (TREE, [FILE | {"path": "/etc/passwd"}], {}),
    "a file without a size": (TREE, [{"type": "file", "path": "a", "oid": "0"}], {}),
    "an empty page and on": (TREE, [], ENDLESS),
    "a page after itself": (f"{TREE}?cursor=2", [FILE], ENDLESS),
    "a page on another host": (TREE, [FILE], {"Link": '<http://elsewhere.test/>; rel="next"'}),
    "a commit that is a path": (INFO, {"id": "a/b", "sha": "../x"}, {}),
    "a date that is none": (INFO, {"id": "a/b", "lastModified": "soon"}, {}),
    "a list": (INFO, [], {}),
    "no discussions, for ever": (f"{INFO[:-14]}/discussions", {"discussions": [], "count": 9}, {}),
}


@pytest.mark.parametrize(("url", "body", "headers"), REFUSED.values(), ids=REFUSED)
def test_answer_that_leads_astray_is_refused(url: str, body: object, headers: dict[str, str]) -> None:
    content = httpx2.ByteStream(json.dumps(body).encode())
    with pytest.raises(AnswerError):
        check_answer(httpx2.Response(200, headers=headers, stream=content, request=httpx2.Request("GET", url)))


def test_secrets_of_an_address_are_not_shown() -> None:
    request = httpx2.Request("GET", "http://user:secret@hub.test/api/models/a/b?token=secret")
    with pytest.raises(AnswerError) as caught:
        check_answer(httpx2.Response(200, stream=httpx2.ByteStream(b"{}"), request=request))
    assert "secret" not in str(caught.value) and "hub.test/api/models/a/b" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(302, headers={"Location": "http://[not an address"}),
        Answer(302, headers={"Location": "http://127.0.0.1:99999/"}),
        Answer(302, headers={"Location": "ftp://127.0.0.1/"}),
        Answer(206, headers={"Content-Range": "bytes x"}, body="x"),
        Answer(404, headers={"X-Error-Code": "EntryNotFound"}),
    ],
)
def test_file_that_is_answered_oddly_is_an_error_for_people(
    faults: Faults, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    source = HubSource(REPO)
    faults.add(Fault("resolve", answer=answer, times=1000))
    with pytest.raises(HubError):
        assert source.shards
