from pathlib import Path

import pytest

from hubtool.rehearsal import RehearsalHub
from tests.fixtures import CommandLine, Conversions, Samples


def possible(document: dict[str, list[dict[str, object]]]) -> dict[object, object]:
    return {rung["rung"]: rung["possible"] for rung in document["rungs"]}


def test_doctor_looks_at_the_machine(hubtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_shown")
    done = hubtool("doctor", "--json")
    assert done.code == 0
    checks = {check["name"]: check for check in done.document["checks"]}
    assert checks["MLX"]["found"].startswith("runs on ")
    assert checks["token"]["state"] == "unknown", "there is no Hub to ask"
    assert checks["memory"]["found"].endswith("available") or "swapped out" in checks["memory"]["found"]
    assert {"disk", "memory guard", "xet"} <= checks.keys()
    assert done.document["rungs"] == []
    assert "hf_not" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("token", "state", "found"),
    [("good", "ok", "knows it: rehearsal"), ("hf_bad", "broken", "does not take"), ("read", "missing", "only read")],
)
def test_doctor_asks_the_hub_about_the_token(
    token: str,
    state: str,
    found: str,
    rehearsal: RehearsalHub,
    hubtool: CommandLine,
    stock_client: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rehearsal.accounts.add_user("ann")
    known = {"good": rehearsal.token, "read": rehearsal.accounts.add_token("ann", "read")}
    monkeypatch.setenv("HF_ENDPOINT", rehearsal.endpoint)
    monkeypatch.setenv("HF_TOKEN", known.get(token, token))
    done = hubtool("doctor", "--json")
    check = next(check for check in done.document["checks"] if check["name"] == "token")
    assert (check["state"], done.code) == (state, 1 if state == "broken" else 0)
    assert found in check["found"] and known.get(token, token) not in check["found"]


def test_doctor_without_a_token_says_how_to_get_one(hubtool: CommandLine, stock_client: None) -> None:
    done = hubtool("doctor", "--json")
    assert done.code == 0
    token = next(check for check in done.document["checks"] if check["name"] == "token")
    assert (token["state"], token["remedy"]) == ("missing", "run `hf auth login`")


def test_doctor_tells_which_rungs_a_folder_can_climb_here(hubtool: CommandLine, converted: Conversions) -> None:
    folder = converted("mini", "mixed_3_6").folder
    everything = dict.fromkeys(("integrity", "load", "smoke", "smoke-streamed"), True)
    assert possible(hubtool("doctor", folder, "--memory-limit", "1GB", "--json").document) == everything
    little = hubtool("doctor", folder, "--memory-limit", "100MB", "--json").document
    assert possible(little) == {"integrity": True, "load": False, "smoke": False, "smoke-streamed": False}
    assert "the memory limit is 100 MB" in {rung["rung"]: rung["why"] for rung in little["rungs"]}["smoke"]


def test_doctor_judges_a_plan_of_published_size_by_its_headers(hubtool: CommandLine, published: Samples) -> None:
    document = hubtool(
        "doctor", published("flash"), "--recipe", "mixed_3_6", "--memory-limit", "4GB", "--json"
    ).document
    assert document["needs"]["weights_nbytes"] == 135_346_422_876
    assert document["needs"]["resident_nbytes"] > 135_346_422_876
    assert document["needs"]["streamed_nbytes"] < 3_000_000_000
    assert possible(document)["smoke"] is False
    assert possible(document)["smoke-streamed"] is True


def test_doctor_of_a_folder_that_hubtool_did_not_make_asks_for_a_recipe(hubtool: CommandLine, tmp_path: Path) -> None:
    done = hubtool("doctor", tmp_path)
    assert (done.code, done.stdout) == (1, "")
    assert "hubtool.json" in done.stderr
