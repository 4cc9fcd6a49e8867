"""Endpoints of a commit: card metadata check, upload modes, and the commit itself."""

import base64
import binascii

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.hub.rules import REGULAR_LIMIT_NBYTES, check_metadata
from hubtool.rehearsal.accounts import Token
from hubtool.rehearsal.api_repos import REPO
from hubtool.rehearsal.api_xet import take_over
from hubtool.rehearsal.changes import Changes, ignore_patterns, lfs_patterns, matches
from hubtool.rehearsal.discussions import Discussions
from hubtool.rehearsal.hub import contributable_repo, hub_of, require_right
from hubtool.rehearsal.repos import Message, Repo
from hubtool.rehearsal.wire import Nbytes, Refusal, base_url, read_json, truthy


class YamlCheck(msgspec.Struct):
    """Body of the card metadata check."""

    content: str
    repoType: str = "model"  # noqa: N815


class Candidate(msgspec.Struct):
    """A file that the client means to commit, with its first 512 bytes."""

    path: str
    size: Nbytes
    sample: str = ""


class Preupload(msgspec.Struct):
    """Body of the upload mode question."""

    files: list[Candidate]
    gitIgnore: str | None = None  # noqa: N815


async def validate_yaml(request: Request) -> Response:
    """The errors and warnings about a card's metadata; 400 if there are errors."""
    body = await read_json(request, YamlCheck)
    problems = check_metadata(body.content)
    errors = [{"message": problem.message} for problem in problems if problem.fatal]
    warnings = [{"message": problem.message} for problem in problems if not problem.fatal]
    return JSONResponse({"errors": errors, "warnings": warnings}, 400 if errors else 200)


async def preupload(request: Request) -> Response:
    """Per file: by which way it is to be sent, whether `.gitignore` names it, and the hash of what is under that path.

    What is to be ignored is left out by the client; a commit that has it is taken all the same.
    """
    repo, token = contributable_repo(request)
    _require_target(request, repo, token)
    body = await read_json(request, Preupload)
    files = repo.resolve(request.path_params["revision"]).files
    rules = lfs_patterns(hub_of(request), files)
    ignored = ignore_patterns(hub_of(request), files, body.gitIgnore)
    answers = []
    for candidate in body.files:
        mode = "lfs" if _wants_lfs(candidate, rules) else "regular"
        ignore = matches(candidate.path, ignored)
        answer: dict[str, object] = {"path": candidate.path, "uploadMode": mode, "shouldIgnore": ignore}
        if candidate.path in files:
            answer["oid"] = files[candidate.path].digest
        answers.append(answer)
    if any(answer["uploadMode"] == "lfs" for answer in answers):
        hub_of(request).check_quota(repo, 0)
    return JSONResponse({"files": answers})


async def commit(request: Request) -> Response:
    """The new commit, made of all lines or not at all; with `create_pr`, as a new pull request."""
    hub = hub_of(request)
    repo, token = contributable_repo(request)
    ref = _require_target(request, repo, token)
    changes = Changes(hub, repo)
    await take_over(hub, repo)
    await changes.read(request)
    head = repo.commit(repo.refs[ref])
    changes.check_parent(head)
    files = changes.applied_to(head)
    message = Message(changes.header.summary, changes.header.description, token.user)
    discussions, answer = Discussions(repo), {"success": True, "hookOutput": ""}
    pull_request = discussions.of_ref(ref)
    if _wants_pull_request(request):
        pull_request = discussions.open_pull_request(message, ref, "open")
        answer["pullRequestUrl"] = f"{base_url(request)}/{repo.name}/discussions/{pull_request.num}"
        ref = pull_request.ref
    made = repo.add_commit(ref, files, message, [head.oid])
    if pull_request is not None:
        discussions.note_commit(pull_request, token.user, message.title, made.oid)
    url = f"{base_url(request)}/{repo.name}/commit/{made.oid}"
    return JSONResponse({**answer, "commitUrl": url, "commitOid": made.oid})


def _wants_pull_request(request: Request) -> bool:
    return truthy(request.query_params.get("create_pr"))


def _require_target(request: Request, repo: Repo, token: Token) -> str:
    """The full name of the ref in the request's path, if this sender may commit to it or propose to.

    Raises:
        Refusal: 404 RevisionNotFound; 403 without the right; 400 for a pull request that is closed.
    """
    revision = request.path_params["revision"]
    ref = repo.find_ref(revision)
    if ref is None or not ref.startswith(("refs/heads/", "refs/pr/")):
        raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
    pull_request = Discussions(repo).of_ref(ref)
    if pull_request is not None and pull_request.status in ("closed", "merged"):
        raise Refusal(400, f"the pull request {ref} is {pull_request.status}")
    is_own = pull_request is not None and pull_request.author == token.user
    if not is_own and not _wants_pull_request(request):
        require_right(request, token, repo.namespace)
    return ref


def _wants_lfs(candidate: Candidate, patterns: list[str]) -> bool:
    """Whether the Hub would take the file as an LFS object: by `.gitattributes`, its size, or because it is binary."""
    try:
        sample = base64.b64decode(candidate.sample, validate=True)
    except binascii.Error as error:
        raise Refusal(400, f"{candidate.path}: the sample is not base64: {error}") from error
    if candidate.size == 0:
        return False
    return matches(candidate.path, patterns) or candidate.size > REGULAR_LIMIT_NBYTES or b"\0" in sample


ROUTES = [
    Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
    Route(f"{REPO}/preupload/{{revision:segment}}", preupload, methods=["POST"]),
    Route(f"{REPO}/commit/{{revision:segment}}", commit, methods=["POST"]),
]
