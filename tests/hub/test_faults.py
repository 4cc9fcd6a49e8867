"""Every failure at every stage: published exactly once and verified, or ended with a reason and a state to go on from.

The table is the product of the stages that a path goes through and what may go wrong there. All of it goes through the
real client, on both of its ways to send large files.
"""

import json
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product

import pytest
from huggingface_hub import CommitOperationAdd

from hubtool.errors import HubError, OutputError
from hubtool.hub.destination import Destination
from hubtool.hub.finish import commit_documents
from hubtool.hub.patience import Patience, PatientHub
from hubtool.hub.upload import Upload
from hubtool.progress import UNWATCHED
from hubtool.rehearsal.faults import (
    COMMIT_IN_PROGRESS,
    COMMIT_LIMIT_REACHED,
    EXPIRED_ADDRESS,
    EXPIRED_TOKEN,
    GATEWAY_TIMEOUT,
    QUOTA_REACHED,
    RATE_LIMITED,
    RATE_WINDOW_FULL,
    STALE_PARENT,
    UNAVAILABLE,
    Answer,
    Effect,
    Fault,
)
from tests.publisher import PATHS, REPO, Publisher

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = [pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"), pytest.mark.slow]

PUBLISHED = ["Publish mixed_3_6 with hubtool"]

BEFORE = ("whoami", "info", "validate", "create")
SENDING = {"lfs": ("preupload", "batch", "put", "verify"), "xet": ("preupload", "xet-token")}
AFTER = ("commit", "tree", "tag")

OVERCOME: dict[str, tuple[Effect, Answer, int]] = {
    "limited, Retry-After": ("answer", RATE_LIMITED, 2),
    "limited, window full": ("answer", RATE_WINDOW_FULL, 2),
    "unavailable": ("answer", UNAVAILABLE, 5),
    "internal error": ("answer", Answer(500), 3),
    "reset": ("reset", Answer(), 2),
    "done, then reset": ("reset-after", Answer(), 1),
    "done, then 500": ("answer-after", Answer(500), 1),
}
"""What happens, and how often."""

STAGES = [(path, stage) for path in PATHS for stage in (*BEFORE, *SENDING[path], *AFTER)]
TABLE = [(path, stage, name) for (path, stage), name in product(STAGES, OVERCOME)]


def assert_published_once(publisher: Publisher) -> None:
    """One commit after the Hub's own, verified; another run finds nothing to do."""
    publisher.rehearsal.faults.clear()
    assert [title.rpartition(" ")[0] for title in publisher.commits()] == PUBLISHED
    again = publisher.publish()
    assert (again.uploaded.changed, again.verification.problems) == (False, ())
    assert len(publisher.commits()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("path", "stage", "name"), TABLE, ids=["-".join(row) for row in TABLE])
def test_what_may_be_repeated_ends_published_exactly_once(publisher: Publisher, stage: str, name: str) -> None:
    effect, answer, times = OVERCOME[name]
    fault = Fault(stage, effect, answer, times=times)
    publisher.rehearsal.faults.add(fault)
    release = publisher.publish()
    assert fault.struck, "the fault never struck"
    assert release.uploaded.changed and release.verification.problems == ()
    assert_published_once(publisher)


@pytest.mark.parametrize("stage", ["validate", "preupload", "batch", "commit", "xet-token"])
@pytest.mark.parametrize("answer", [GATEWAY_TIMEOUT, Answer(200, body="<html>Sign in to the network</html>")])
@pytest.mark.parametrize("skip", [0, 1])
def test_page_of_a_gateway_is_no_answer(publisher: Publisher, stage: str, answer: Answer, skip: int) -> None:
    publisher.rehearsal.faults.add(Fault(stage, answer=answer, skip=skip, times=2))
    publisher.publish()
    assert_published_once(publisher)


ODD = {
    "no address": '{"success": true}',
    "address elsewhere": '{"commitUrl": "https://hub.invalid/a/b/commit/0", "commitOid": "0"}',
    "no JSON": "done",
}
"""Answers to a commit that landed."""


@pytest.mark.parametrize("name", ODD)
def test_commit_that_landed_is_found_whatever_its_answer_says(publisher: Publisher, name: str) -> None:
    fault = Fault("commit", "answer-after", Answer(200, body=ODD[name]), times=1000)
    publisher.rehearsal.faults.add(fault)
    release = publisher.publish()
    assert (fault.struck, release.tag is not None, publisher.waits) == (1, True, [])
    assert_published_once(publisher)


@pytest.mark.parametrize("path", ["lfs"])
@pytest.mark.parametrize("name", ODD)
def test_card_whose_push_is_answered_oddly_is_pushed_once(publisher: Publisher, name: str) -> None:
    publisher.publish()
    card = (publisher.folder / "README.md").read_bytes() + b"More.\n"
    head = publisher.api.model_info(REPO).sha
    assert head is not None
    publisher.rehearsal.faults.add(Fault("commit", "answer-after", Answer(200, body=ODD[name])))
    commit = commit_documents(publisher.api, REPO, {"README.md": card}, head, "Card")
    assert publisher.api.model_info(REPO).sha == commit
    assert len(publisher.commits()) == 2


def test_card_that_the_hub_refuses_only_with_the_commit_is_told(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("validate", answer=Answer(400, "no such license today"), skip=1))
    with pytest.raises(OutputError, match="README.md: the Hub refuses the card: found no such license today; correct"):
        publisher.publish()
    publisher.publish()
    assert_published_once(publisher)


@pytest.mark.parametrize("message", ["Not Found", None], ids=["JSON", "page"])
@pytest.mark.parametrize("path", ["xet"])
def test_hub_without_what_only_checks_ask_for_will_do(publisher: Publisher, message: str | None) -> None:
    """Neither the check of rights nor LFS is needed by the stock client on its way by xet."""
    publisher.publish()
    (publisher.folder / "README.md").write_text((publisher.folder / "README.md").read_text() + "\nMore.\n")
    missing = Answer(404, message) if message else Answer(404, body="<html>404</html>")
    faults = [Fault("auth-check", answer=missing, times=1000), Fault("batch", answer=missing, times=1000)]
    publisher.rehearsal.faults.add(*faults)
    publisher.publish()
    assert [fault.struck for fault in faults] == [1, 1]
    assert len(publisher.commits()) == 2


def test_hub_that_cannot_check_the_card_does_not_refuse_it(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("validate", answer=UNAVAILABLE, times=1000))
    with pytest.raises(HubError, match="Service Unavailable"):
        publisher.publish()


@pytest.mark.parametrize("stage", ["batch", "put", "verify"])
@pytest.mark.parametrize("path", ["lfs"])
def test_what_the_stock_client_gives_up_is_tried_again_later(publisher: Publisher, stage: str) -> None:
    publisher.rehearsal.faults.add(Fault(stage, answer=UNAVAILABLE, times=8))
    publisher.publish()
    assert publisher.waits == [5]
    assert_published_once(publisher)


SILENT = [(path, stage) for path, stage in STAGES if stage not in ("put",)] + [("lfs", "put")]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "stage"), SILENT, ids=["-".join(row) for row in SILENT])
@pytest.mark.read_seconds(0.3)
def test_silence_is_not_waited_out(publisher: Publisher, stage: str) -> None:
    fault = Fault(stage, "hang")
    publisher.rehearsal.faults.add(fault)
    assert publisher.publish().uploaded.changed
    assert fault.struck
    assert_published_once(publisher)


@pytest.mark.parametrize("nbytes", [0, 100_000, 2_000_000])
@pytest.mark.parametrize("path", ["lfs"])
def test_put_that_is_cut_off_in_the_middle_is_sent_again(publisher: Publisher, nbytes: int) -> None:
    publisher.rehearsal.faults.add(Fault("put", "reset", nbytes=nbytes, times=8))
    publisher.publish()
    assert_published_once(publisher)


@pytest.mark.parametrize("path", ["lfs"])
def test_expired_address_is_asked_for_again(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("put", answer=EXPIRED_ADDRESS, times=2))
    publisher.publish()
    assert publisher.rehearsal.faults.calls["put"] >= 3
    assert_published_once(publisher)


@pytest.mark.parametrize("answer", [COMMIT_IN_PROGRESS, COMMIT_LIMIT_REACHED], ids=["in progress", "limit"])
def test_commit_that_has_to_wait_is_made_once(publisher: Publisher, answer: Answer) -> None:
    publisher.rehearsal.faults.add(Fault("commit", answer=answer, times=3))
    publisher.publish()
    assert publisher.waits[:3] == [5, 15, 60]
    assert_published_once(publisher)


ENDS = {
    "expired token": (EXPIRED_TOKEN, r"Invalid credentials.*log in"),
    "quota": (QUOTA_REACHED, r"storage limit reached; free some private storage.*--public"),
    "forbidden": (Answer(403, "You may not"), r"You may not; take a token that has this right"),
}
REFUSING = {"lfs": ("create", "preupload", "batch", "commit"), "xet": ("create", "preupload", "xet-token", "commit")}
REFUSED = [(path, stage, name) for path in PATHS for stage in REFUSING[path] for name in ENDS]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "stage", "name"), REFUSED, ids=["-".join(row) for row in REFUSED])
def test_what_cannot_be_repeated_ends_with_its_reason_and_the_next_run_goes_on(
    publisher: Publisher, stage: str, name: str
) -> None:
    answer, sentence = ENDS[name]
    publisher.rehearsal.faults.add(Fault(stage, answer=answer))
    with pytest.raises(HubError) as caught:
        publisher.publish()
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert publisher.rehearsal.token not in str(caught.value)
    assert publisher.waits == []
    assert publisher.rehearsal.faults.calls[stage] == 1
    assert publisher.publish().uploaded.changed
    assert_published_once(publisher)


@dataclass(frozen=True)
class Turn:
    """A stage that only some destinations go through: that destination, and which call of the stage is struck."""

    stage: str
    to: Destination
    skip: int = 0

    def prepare(self, publisher: Publisher) -> Destination:
        """The destination; what it needs is made."""
        if self.stage in ("auth-check", "discussions", "resolve", "refs"):
            publisher.api.create_repo(REPO, private=True)
        if self.stage == "resolve":  # a record that is not the folder's is read
            unread = CommitOperationAdd("hubtool.json", b"{}")
            publisher.api.create_commit(REPO, [unread], commit_message="Something else")
        if self.stage == "collections":
            return replace(self.to, collection=publisher.api.create_collection("V4", namespace="someone").slug)
        return self.to


TURNS = {
    "settings": Turn("settings", Destination(REPO, public_after_verify=True)),
    "branch": Turn("branch", Destination(REPO, revision="next")),
    "search of a pull request": Turn("discussions", Destination(REPO, pull_request=True)),
    "pull request": Turn("discussions", Destination(REPO, pull_request=True), skip=1),
    "search of a collection": Turn("collections", Destination(REPO)),
    "collections": Turn("collections", Destination(REPO), skip=1),
    "auth-check": Turn("auth-check", Destination(REPO)),
    "what stands there": Turn("resolve", Destination(REPO)),
    "who has the tag": Turn("refs", Destination(REPO, tag="v1.0")),
}
TURNED = [("xet", turn, name) for turn, name in product(TURNS, OVERCOME)]
TURNED_AWAY = [("xet", turn, name) for turn, name in product(TURNS, ENDS)]


def assert_arrived_once(publisher: Publisher, to: Destination, *, changed: bool) -> None:
    """One commit where it should be, public or collected as it should be, by one pull request; nothing is left."""
    publisher.rehearsal.faults.clear()
    for change in (changed, False):
        release = publisher.publish(to)
        assert (release.uploaded.changed, release.verification.problems) == (change, ())
    commits = publisher.commits("refs/pr/1" if to.pull_request else to.revision)
    assert len([title for title in commits if title.startswith("Publish ")]) == 1
    assert len(list(publisher.api.get_repo_discussions(REPO))) == (1 if to.pull_request else 0)
    assert publisher.api.model_info(REPO).private is not to.public_after_verify
    if to.collection is not None:
        assert [item.item_id for item in publisher.api.get_collection(to.collection).items] == [REPO]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "turn", "name"), TURNED, ids=["-".join(row[1:]) for row in TURNED])
def test_what_may_be_repeated_on_the_way_to_some_places_arrives_once(
    publisher: Publisher, turn: str, name: str
) -> None:
    effect, answer, times = OVERCOME[name]
    to = TURNS[turn].prepare(publisher)
    fault = Fault(TURNS[turn].stage, effect, answer, skip=TURNS[turn].skip, times=times)
    publisher.rehearsal.faults.add(fault)
    assert publisher.publish(to).uploaded.changed
    assert fault.struck, "the fault never struck"
    assert_arrived_once(publisher, to, changed=False)


@pytest.mark.parametrize(("path", "turn"), [("xet", "what stands there"), ("xet", "who has the tag")])
@pytest.mark.read_seconds(0.3)
def test_silence_on_the_way_to_some_places_is_not_waited_out(publisher: Publisher, turn: str) -> None:
    to = TURNS[turn].prepare(publisher)
    fault = Fault(TURNS[turn].stage, "hang")
    publisher.rehearsal.faults.add(fault)
    assert publisher.publish(to).uploaded.changed
    assert fault.struck
    assert_arrived_once(publisher, to, changed=False)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "turn", "name"), TURNED_AWAY, ids=["-".join(row[1:]) for row in TURNED_AWAY])
def test_what_is_refused_on_the_way_to_some_places_is_told_and_gone_on_with(
    publisher: Publisher, turn: str, name: str
) -> None:
    answer, sentence = ENDS[name]
    to = TURNS[turn].prepare(publisher)
    publisher.rehearsal.faults.add(Fault(TURNS[turn].stage, answer=answer, skip=TURNS[turn].skip))
    with pytest.raises(HubError) as caught:
        publisher.publish(to)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert publisher.waits == []
    assert_arrived_once(publisher, to, changed=TURNS[turn].stage != "settings" and turn != "collections")


def test_commit_to_a_repo_that_has_changed_is_never_repeated(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("commit", answer=STALE_PARENT))
    with pytest.raises(HubError, match="someone else has committed meanwhile"):
        publisher.publish()
    assert publisher.rehearsal.faults.calls["commit"] == 1
    publisher.publish()
    assert_published_once(publisher)


def test_patience_ends_and_the_next_run_sends_nothing_twice(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("commit", answer=UNAVAILABLE, times=1000))
    with pytest.raises(HubError, match="Service Unavailable.*run it again"):
        publisher.publish()
    assert publisher.waits == [5, 15, 60, 180, 300]
    assert publisher.commits() == []
    publisher.rehearsal.faults.clear()
    publisher.publish()
    calls = publisher.rehearsal.faults.calls
    assert (calls["put"], calls["xet-token"]) == (0, 0), "what had been sent was asked for, not sent again"
    assert_published_once(publisher)


def test_wait_that_the_hub_asks_for_beyond_reason_ends_the_run(publisher: Publisher) -> None:
    answer = Answer(429, "Come back tomorrow", {"Retry-After": "86400"})
    publisher.rehearsal.faults.add(Fault("commit", answer=answer))
    with pytest.raises(HubError, match="Come back tomorrow; wait, then run it again"):
        publisher.publish()
    assert publisher.waits == []


def refusing_store(publisher: Publisher, status: int, times: int) -> Fault:
    """Have the next tokens for xet name a content store over HTTP that refuses everything."""
    token = {"casUrl": f"{publisher.rehearsal.endpoint}/xet-store", "accessToken": "a", "exp": int(time.time()) + 3600}
    publisher.rehearsal.faults.add(Fault("xet-store", answer=Answer(status, "storage limit reached"), times=1000))
    fault = Fault("xet-token", answer=Answer(200, body=json.dumps(token)), times=times)
    publisher.rehearsal.faults.add(fault)
    return fault


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("path", ["xet"])
def test_store_that_refuses_for_good_is_asked_twice(publisher: Publisher, status: int) -> None:
    fault = refusing_store(publisher, status, times=1000)
    with pytest.raises(HubError, match=rf"safetensors: sending failed: .*\({status} .*see the account's storage and"):
        publisher.publish()
    assert (fault.struck, publisher.waits) == (2, [5])
    publisher.rehearsal.faults.clear()
    publisher.publish()
    assert_published_once(publisher)


@pytest.mark.parametrize("path", ["xet"])
def test_store_that_refuses_one_token_is_given_another(publisher: Publisher) -> None:
    refusing_store(publisher, 401, times=1)
    publisher.publish()
    assert publisher.waits == [5]
    assert_published_once(publisher)


@pytest.mark.parametrize("stage", ["put", "verify"])
@pytest.mark.parametrize("path", ["lfs"])
def test_quota_in_the_middle_of_a_transfer_is_not_an_expired_address(publisher: Publisher, stage: str) -> None:
    publisher.rehearsal.faults.add(Fault(stage, answer=QUOTA_REACHED, times=1000))
    with pytest.raises(HubError, match="storage limit reached; free some private storage"):
        publisher.publish()
    assert (publisher.waits, publisher.rehearsal.faults.calls[stage]) == ([], 1)


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [(timedelta(seconds=100), 95, 102), (timedelta(seconds=-100), 1, 1)],
    ids=["to come", "past"],
)
def test_wait_may_be_asked_for_by_its_end(publisher: Publisher, after: timedelta, least: float, most: float) -> None:
    date = format_datetime(datetime.now(UTC) + after, usegmt=True)
    publisher.rehearsal.faults.add(Fault("commit", answer=Answer(429, "Later", {"Retry-After": date})))
    publisher.publish()
    (wait,) = publisher.waits
    assert least <= wait <= most
    assert_published_once(publisher)


def test_wait_that_cannot_be_read_is_the_usual_one(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("commit", answer=Answer(429, "Later", {"Retry-After": "tomorrow"})))
    publisher.publish()
    assert publisher.waits == [5]


def test_quota_that_is_really_reached_is_told_and_a_public_repo_is_the_way_out(publisher: Publisher) -> None:
    accounts = publisher.rehearsal.accounts
    accounts.add_user("someone", private_quota=1_000_000)
    with pytest.raises(HubError, match="storage limit reached"):
        publisher.publish()
    assert publisher.commits() == []
    publisher.api.update_repo_settings(REPO, private=False)
    publisher.publish(Destination(REPO, private=False))
    assert_published_once(publisher)


@pytest.mark.parametrize("path", ["xet"])
def test_hub_without_xet_gets_large_files_by_lfs(publisher: Publisher) -> None:
    publisher.rehearsal.faults.add(Fault("xet-token", answer=Answer(404, body="404 page not found"), times=1000))
    told: list[str] = []
    hub = PatientHub(publisher.api, Patience(sleep=publisher.waits.append), told.append)
    assert Upload(hub, publisher.folder, publisher.record, Destination(REPO)).run(UNWATCHED).changed
    assert publisher.rehearsal.faults.calls["put"] > 0, "they went by LFS"
    assert [said for said in told if "has no xet: large files go by LFS" in said]
