"""Endpoints of discussions and pull requests."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal.accounts import Token
from hubtool.rehearsal.api_repos import REPO
from hubtool.rehearsal.discussions import Discussion, Discussions, Event
from hubtool.rehearsal.hub import contributable_repo, readable_repo, require_right
from hubtool.rehearsal.repos import MAIN, Message, Repo
from hubtool.rehearsal.times import timestamp
from hubtool.rehearsal.wire import Refusal, read_json

DISCUSSIONS_A_PAGE = 50


class NewDiscussion(msgspec.Struct):
    """Body of a new discussion."""

    title: str
    description: str = ""
    pullRequest: bool = False  # noqa: N815


class Comment(msgspec.Struct):
    """Body of a comment."""

    comment: str = ""


class NewTitle(msgspec.Struct):
    """Body of a new title."""

    title: str


class NewStatus(msgspec.Struct):
    """Body of a new status."""

    status: Literal["open", "closed"]
    comment: str = ""


async def listing(request: Request) -> Response:
    """One page of the discussions, newest first."""
    repo, query = readable_repo(request), request.query_params
    found = [
        item
        for item in reversed(list(Discussions(repo)))
        if query.get("type", "all") in ("all", "pull_request" if item.base_ref else "discussion")
        and query.get("status", "all") in ("all", "closed" if item.status in ("closed", "merged") else "open")
        and query.get("author", item.author) == item.author
    ]
    start = int(query.get("p", "0")) * DISCUSSIONS_A_PAGE
    page = [_summary(repo, item) for item in found[start : start + DISCUSSIONS_A_PAGE]]
    return JSONResponse({"discussions": page, "count": len(found), "start": start})


async def create(request: Request) -> Response:
    """The new discussion; a pull request starts at the head of main, as a draft."""
    repo, token = contributable_repo(request)
    body = await read_json(request, NewDiscussion)
    discussions = Discussions(repo)
    if body.pullRequest:
        message = Message(body.title, body.description, token.user)
        made = discussions.open_pull_request(message, MAIN, "draft")
    else:
        made = discussions.open(body.title, body.description, token.user)
    return JSONResponse(_summary(repo, made))


async def details(request: Request) -> Response:
    """A discussion with its events; of a pull request also what it would change."""
    repo = readable_repo(request)
    discussions = Discussions(repo)
    found = discussions.get(request.path_params["num"])
    answer = {**_summary(repo, found), "events": [_event(event) for event in found.events]}
    if found.base_ref is not None:
        answer["changes"] = {"base": found.base_ref, "mergeCommitId": found.merge_oid}
        open_still = found.status in ("open", "draft")
        answer["filesWithConflicts"] = discussions.conflicts(found) if open_still else []
        answer["diff"] = _diff(repo, found)
    return JSONResponse(answer)


async def comment(request: Request) -> Response:
    """The new comment."""
    repo, token = contributable_repo(request)
    body = await read_json(request, Comment)
    discussions = Discussions(repo)
    event = discussions.comment(discussions.get(request.path_params["num"]), token.user, body.comment)
    return JSONResponse({"newMessage": _event(event)})


async def title(request: Request) -> Response:
    """The note of the new title."""
    discussions, found, token = _changeable(request)
    body = await read_json(request, NewTitle)
    return JSONResponse({"newTitle": _event(discussions.set_title(found, token.user, body.title))})


async def status(request: Request) -> Response:
    """The note of the new status."""
    discussions, found, token = _changeable(request)
    body = await read_json(request, NewStatus)
    if found.status == "merged":
        raise Refusal(400, f"discussion {found.num} is merged")
    if body.comment:
        discussions.comment(found, token.user, body.comment)
    return JSONResponse({"newStatus": _event(discussions.set_status(found, token.user, body.status))})


async def merge(request: Request) -> Response:
    """The commit by which the pull request was merged."""
    repo, token = contributable_repo(request)
    require_right(request, token, repo.namespace)
    discussions = Discussions(repo)
    oid = discussions.merge(discussions.get(request.path_params["num"]), token.user)
    return JSONResponse({"mergeCommitId": oid})


def _changeable(request: Request) -> tuple[Discussions, Discussion, Token]:
    """A discussion that the sender opened, or whose repo they may write to."""
    repo, token = contributable_repo(request)
    discussions = Discussions(repo)
    found = discussions.get(request.path_params["num"])
    if found.author != token.user:
        require_right(request, token, repo.namespace)
    return discussions, found, token


def _summary(repo: Repo, discussion: Discussion) -> dict[str, object]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "author": {"name": discussion.author},
        "createdAt": timestamp(discussion.created),
        "status": discussion.status,
        "isPullRequest": discussion.base_ref is not None,
        "repo": {"name": repo.name, "type": "model"},
    }


def _event(event: Event) -> dict[str, object]:
    author = {"name": event.author}
    date = timestamp(event.date)
    return {"id": event.id, "type": event.type, "author": author, "createdAt": date, "data": event.data}


def _diff(repo: Repo, discussion: Discussion) -> str:
    """The paths that the pull request changes, in git's short form: A, M or D and the path."""
    assert discussion.base_oid is not None
    base, head = repo.commit(discussion.base_oid).files, repo.commit(repo.refs[discussion.ref]).files
    changed = sorted(path for path in base | head if base.get(path) != head.get(path))
    kinds = {path: "A" if path not in base else "D" if path not in head else "M" for path in changed}
    return "".join(f"{kinds[path]}\t{path}\n" for path in changed)


ROUTES = [
    Route(f"{REPO}/discussions", listing),
    Route(f"{REPO}/discussions", create, methods=["POST"]),
    Route(f"{REPO}/discussions/{{num:int}}", details),
    Route(f"{REPO}/discussions/{{num:int}}/comment", comment, methods=["POST"]),
    Route(f"{REPO}/discussions/{{num:int}}/title", title, methods=["POST"]),
    Route(f"{REPO}/discussions/{{num:int}}/status", status, methods=["POST"]),
    Route(f"{REPO}/discussions/{{num:int}}/merge", merge, methods=["POST"]),
]
