"""Provenance as in-toto statements: where the files come from (SLSA), and what was tested on them.

They are made from the record alone, so they can be regenerated and compared. They are not signed: a signature of the
files is OpenSSF model-signing's, beside them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubtool.card import current_evidence
from hubtool.record import PROVENANCE_FILE, TEST_RESULT_FILE, Evidence, FileRecord, Record, SourceRecord, files_digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
"""https://github.com/in-toto/attestation, https://slsa.dev/spec/v1.0/provenance"""

BUILDER = "pkg:pypi/hubtool"
BUILD_TYPE = f"{BUILDER}#convert/v1"
"""What `externalParameters` mean: a source, and the recipe that decides how each of its weights is stored."""

HUB = "https://huggingface.co"

_RESULTS = {"passed": "passedTests", "failed": "failedTests", "aborted_by_guard": "failedTests"}
"""Refused and not run are neither: the statement has their configuration without a verdict.

What the publisher states to have passed is among `warnedTests`: nobody measured it.
"""


def make_statements(record: Record) -> dict[str, bytes]:
    """The statements about a record's files, by file name: the provenance, and the test result if there is evidence."""
    statements = {PROVENANCE_FILE: _provenance(record)}
    if evidence := current_evidence(record):
        statements[TEST_RESULT_FILE] = _test_result(record, evidence)
    return {name: (json.dumps(statement, indent=2) + "\n").encode() for name, statement in statements.items()}


STATEMENT_FILES = (PROVENANCE_FILE, TEST_RESULT_FILE)


def remove_stale(folder: Path, made: Collection[str]) -> tuple[str, ...]:
    """Remove the statements of a folder that are not among those that its record makes now; their names."""
    stale = [name for name in STATEMENT_FILES if name not in made and (folder / name).is_file()]
    for name in stale:
        (folder / name).unlink()
    return tuple(stale)


def check_statements(record: Record, found: Mapping[str, bytes]) -> tuple[str, ...]:
    """Every statement that is not what the record says, as sentences.

    Args:
        record: The record.
        found: The statements of a folder or repo, by file name.
    """
    expected = make_statements(record)
    problems = [f"{name}: missing" for name in expected if name not in found]
    problems += [f"{name}: not what the record says" for name in expected if found.get(name, b"") != expected[name]]
    unexpected = [name for name in STATEMENT_FILES if name in found and name not in expected]
    problems += [f"{name}: about what is not recorded" for name in unexpected]
    return tuple(sorted({problem.partition(":")[0]: problem for problem in reversed(problems)}.values()))


def _statement(record: Record, predicate_type: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(file) for file in record.files],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def _resource(file: FileRecord) -> dict[str, Any]:
    return {"name": file.name, "digest": {"sha256": file.sha256}}


def _source_file(source: SourceRecord, file: FileRecord) -> dict[str, Any]:
    """A file of the source as a resource, which says if its digest is only the Hub's word."""
    stated = {"annotations": {"digest": "stated by the Hub, not checked"}} if file.name in source.unverified else {}
    return _resource(file) | stated


def _provenance(record: Record) -> dict[str, Any]:
    source, recipe = record.source, record.recipe
    versions = dict(record.versions)
    return _statement(
        record,
        PROVENANCE_TYPE,
        {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "source": _checkpoint(record),
                    "recipe": {"name": recipe.name, "digest": {"sha256": recipe.sha256}},
                },
                "internalParameters": {"plan": {"sha256": record.plan.digest}},
                "resolvedDependencies": [_checkpoint(record), *(_source_file(source, file) for file in source.files)],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": versions}},
        },
    )


def _checkpoint(record: Record) -> dict[str, Any]:
    """The source as a resource: by repo and commit as far as they are known, and by the digest of its files."""
    source = record.source
    digest = {"sha256": files_digest({file.name: file.sha256 for file in source.files})}
    resource: dict[str, Any] = {"name": source.repo or source.model_type, "digest": digest}
    if source.repo:
        resource["uri"] = f"{HUB}/{source.repo}" + (f"/tree/{source.commit}" if source.commit else "")
    if source.commit:
        digest["gitCommit"] = source.commit
    known = {"repo": source.repo_known or "not recorded", "commit": source.commit_known or "not recorded"}
    return resource | {"annotations": known}


def _test_result(record: Record, evidence: Sequence[Evidence]) -> dict[str, Any]:
    verdicts: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for item in evidence:
        if item.kind == "stated" and item.outcome == "passed":
            verdicts["warnedTests"].append(item.check)
        elif item.outcome in _RESULTS:
            verdicts[_RESULTS[item.outcome]].append(item.check)
    result = "FAILED" if verdicts["failedTests"] else "PASSED" if verdicts["passedTests"] else "WARNED"
    return _statement(
        record,
        TEST_RESULT_TYPE,
        {
            "result": result,
            "configuration": [_configuration(item) for item in evidence],
            **{name: list(dict.fromkeys(checks)) for name, checks in verdicts.items()},
        },
    )


def _configuration(item: Evidence) -> dict[str, Any]:
    machine = item.machine
    return {
        "name": item.check,
        "digest": {"sha256": item.subject},
        "annotations": {
            "outcome": item.outcome,
            "kind": item.kind,
            "detail": item.detail,
            "command": item.command,
            "started": item.started,
            "machine": f"{machine.model}, {machine.chip}, {machine.memory_nbytes} bytes, {machine.system}",
            "versions": item.versions,
            "figures": item.figures,
        },
    }
