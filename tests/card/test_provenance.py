"""The in-toto statements: made from the record alone, and held against it."""

import json
from typing import Any

import msgspec
import pytest

from hubtool.card.provenance import PROVENANCE_TYPE, STATEMENT_TYPE, TEST_RESULT_TYPE, check_statements, make_statements
from hubtool.record import PROVENANCE_FILE, TEST_RESULT_FILE, Record
from tests.card.records import OUTCOMES, evidence, with_evidence
from tests.fixtures import Conversions


@pytest.fixture
def record(converted: Conversions) -> Record:
    """A record with evidence of a load and an aborted generation."""
    return with_evidence(converted("mini", "mixed_3_6").record, *OUTCOMES["aborted"])


def statement(record: Record, name: str) -> Any:
    return json.loads(make_statements(record)[name])


def test_the_provenance_names_source_recipe_tools_and_every_output(record: Record) -> None:
    made = statement(record, PROVENANCE_FILE)
    assert (made["_type"], made["predicateType"]) == (STATEMENT_TYPE, PROVENANCE_TYPE)
    assert {item["name"]: item["digest"]["sha256"] for item in made["subject"]} == record.hashes()
    build = made["predicate"]["buildDefinition"]
    assert build["externalParameters"]["recipe"]["digest"] == {"sha256": record.recipe.sha256}
    source, *files = build["resolvedDependencies"]
    assert source["uri"] == "https://huggingface.co/someone/DeepSeek-V4-sample"
    assert source["annotations"] == {"repo": "stated", "commit": "not recorded"}
    assert [item["name"] for item in files] == [file.name for file in record.source.files]
    assert made["predicate"]["runDetails"]["builder"]["version"] == record.versions


def test_a_known_commit_is_a_digest_of_the_source(record: Record) -> None:
    source = msgspec.structs.replace(record.source, commit="a" * 40, commit_known="observed")
    known = msgspec.structs.replace(record, source=source)
    made = statement(known, PROVENANCE_FILE)["predicate"]["buildDefinition"]["externalParameters"]["source"]
    assert made["digest"]["gitCommit"] == "a" * 40
    assert made["uri"].endswith(f"/tree/{'a' * 40}")


def test_the_test_result_has_each_check_with_its_outcome(record: Record) -> None:
    made = statement(record, TEST_RESULT_FILE)
    assert made["predicateType"] == TEST_RESULT_TYPE
    predicate = made["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == (
        "FAILED",
        ["integrity", "load"],
        ["smoke"],
    )
    assert [item["annotations"]["outcome"] for item in predicate["configuration"]] == [
        "passed",
        "passed",
        "aborted_by_guard",
    ]


def test_only_the_latest_verdict_of_each_check_counts(record: Record) -> None:
    failed, passed = evidence("smoke", "failed"), evidence("smoke", "passed")
    predicate = statement(with_evidence(record, failed, passed), TEST_RESULT_FILE)["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == ("PASSED", ["smoke"], [])


def test_what_is_only_stated_is_no_passed_test(record: Record) -> None:
    stated = with_evidence(record, evidence("smoke", "passed", kind="stated"))
    predicate = statement(stated, TEST_RESULT_FILE)["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["warnedTests"]) == ("WARNED", [], ["smoke"])


def test_what_was_refused_has_no_verdict(record: Record) -> None:
    refused = with_evidence(record, evidence("smoke", "refused_preflight"))
    predicate = statement(refused, TEST_RESULT_FILE)["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == ("WARNED", [], [])


def test_without_evidence_there_is_no_test_result(record: Record) -> None:
    assert set(make_statements(msgspec.structs.replace(record, evidence=()))) == {PROVENANCE_FILE}


def test_evidence_about_other_files_is_no_test_result(record: Record) -> None:
    first, *rest = record.files
    changed = msgspec.structs.replace(record, files=(msgspec.structs.replace(first, sha256="0" * 64), *rest))
    assert set(make_statements(changed)) == {PROVENANCE_FILE}


def test_statements_that_are_as_made_hold(record: Record) -> None:
    assert check_statements(record, make_statements(record)) == ()


def test_a_statement_that_is_changed_missing_or_of_another_record_is_named(record: Record) -> None:
    made = make_statements(record)
    changed = made | {PROVENANCE_FILE: made[PROVENANCE_FILE].replace(b"mixed_3_6", b"mixed_4_6")}
    assert check_statements(record, changed) == (f"{PROVENANCE_FILE}: not what the record says",)
    assert check_statements(record, {TEST_RESULT_FILE: made[TEST_RESULT_FILE]}) == (f"{PROVENANCE_FILE}: missing",)
    untested = msgspec.structs.replace(record, evidence=())
    assert check_statements(untested, made) == (f"{TEST_RESULT_FILE}: about what is not recorded",)
