"""Endpoints about repos as a whole: who am I, create, settings, refs, history."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.hub.rules import REF_NAME
from hubtool.rehearsal.accounts import OWNER
from hubtool.rehearsal.hub import hub_of, readable_repo, require_right, required_token, writable_repo
from hubtool.rehearsal.repos import MAIN, Commit, Repo
from hubtool.rehearsal.times import timestamp
from hubtool.rehearsal.wire import Refusal, base_url, page_of, read_json, truthy

COMMITS_A_PAGE = 50


class RepoName(msgspec.Struct):
    """Body of create and delete, as far as it concerns models."""

    name: str
    organization: str | None = None
    type: str = "model"
    visibility: str | None = None
    private: bool | None = None


class NewSettings(msgspec.Struct):
    """Body of a settings change; what is absent stays."""

    visibility: Literal["public", "private"] | None = None
    private: bool | None = None
    gated: Literal["auto", "manual", False] | None = None


class NewBranch(msgspec.Struct):
    """Body of a new branch."""

    startingPoint: str = "main"  # noqa: N815
    overwrite: bool = False


class NewTag(msgspec.Struct):
    """Body of a new tag."""

    tag: str
    message: str = ""


async def whoami(request: Request) -> Response:
    """Who the token belongs to, and what it allows; the owner belongs to everything there is, and may make more."""
    hub, token = hub_of(request), required_token(request)
    orgs, role = hub.accounts.orgs_of(token.user), "admin" if token.user == OWNER else token.role
    if token.user == OWNER:
        orgs |= {repo.namespace: "admin" for repo in hub.repos if repo.namespace != OWNER}
    return JSONResponse(
        {
            "type": "user",
            "id": token.user,
            "name": token.user,
            "fullname": token.user,
            "isPro": False,
            "orgs": [{"type": "org", "id": org, "name": org, "roleInOrg": role} for org, role in orgs.items()],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": role, "role": role, "createdAt": timestamp(token.created)},
            },
        }
    )


async def create(request: Request) -> Response:
    """The address of a new repo; 409 with the address of the old one where the name is taken."""
    hub, token = hub_of(request), required_token(request)
    body = await read_json(request, RepoName)
    _only_models(body)
    name = f"{body.organization or token.user}/{body.name}"
    require_right(request, token, name.split("/")[0])
    url = f"{base_url(request)}/{name}"
    if hub.repos.get(name) is not None:
        raise Refusal(409, "You already created this model repo", extra={"url": url})
    private = body.visibility == "private" or bool(body.private)
    repo = hub.repos.create(name, token.user, hub.initial_attributes(), private=private)
    return JSONResponse({"url": url, "name": repo.name, "id": repo.name})


async def delete(request: Request) -> Response:
    """Nothing; the repo is gone."""
    hub, token = hub_of(request), required_token(request)
    body = await read_json(request, RepoName)
    _only_models(body)
    repo = hub.repos.get(f"{body.organization or token.user}/{body.name}")
    if repo is None or not hub.accounts.may_read(token, repo):
        raise Refusal(404, "Repository not found", code="RepoNotFound")
    require_right(request, token, repo.namespace)
    hub.delete_repo(repo)
    return JSONResponse({})


async def settings(request: Request) -> Response:
    """The settings after the change."""
    repo, _ = writable_repo(request)
    body = await read_json(request, NewSettings)
    private = body.visibility == "private" if body.visibility is not None else body.private
    if private is not None:
        repo.settings.private = private
    if body.gated is not None:
        repo.settings.gated = body.gated
    repo.save_settings()
    return JSONResponse({"private": repo.settings.private, "gated": repo.settings.gated})


async def auth_check(request: Request) -> Response:
    """Success if the sender may read the repo."""
    readable_repo(request)
    return JSONResponse({})


async def auth_check_write(request: Request) -> Response:
    """Success if the sender may write to the repo."""
    writable_repo(request)
    return JSONResponse({})


async def refs(request: Request) -> Response:
    """Branches and tags, and with `include_prs` pull requests."""
    repo = readable_repo(request)
    found: dict[str, object] = {
        "branches": _refs(repo, "refs/heads/"),
        "converts": [],
        "tags": _refs(repo, "refs/tags/"),
    }
    if truthy(request.query_params.get("include_prs")):
        found["pullRequests"] = _refs(repo, "refs/pr/")
    return JSONResponse(found)


async def history(request: Request) -> Response:
    """The commits of a revision, newest first."""
    repo = readable_repo(request)
    commits = list(repo.history(repo.resolve(request.path_params["revision"])))
    page, headers = page_of(request, commits, COMMITS_A_PAGE)
    headers["X-Total-Count"] = str(len(commits))
    return JSONResponse([_commit_json(commit) for commit in page], headers=headers)


async def create_branch(request: Request) -> Response:
    """Nothing; the branch exists."""
    repo, _ = writable_repo(request)
    body = await read_json(request, NewBranch)
    ref = _new_ref(repo, "refs/heads/", request.path_params["ref"], overwrite=body.overwrite)
    repo.set_ref(ref, repo.resolve(body.startingPoint).oid)
    return JSONResponse({})


async def delete_branch(request: Request) -> Response:
    """Nothing; the branch is gone. `main` cannot go."""
    repo, _ = writable_repo(request)
    ref = f"refs/heads/{request.path_params['ref']}"
    if ref == MAIN:
        raise Refusal(403, "The branch main cannot be deleted")
    return _delete_ref(repo, ref)


async def create_tag(request: Request) -> Response:
    """Nothing; the revision in the path has the tag in the body."""
    repo, _ = writable_repo(request)
    body = await read_json(request, NewTag)
    commit = repo.resolve(request.path_params["ref"])
    repo.set_ref(_new_ref(repo, "refs/tags/", body.tag), commit.oid)
    return JSONResponse({})


async def delete_tag(request: Request) -> Response:
    """Nothing; the tag is gone."""
    repo, _ = writable_repo(request)
    return _delete_ref(repo, f"refs/tags/{request.path_params['ref']}")


def _commit_json(commit: Commit) -> dict[str, object]:
    message = commit.message
    return {
        "id": commit.oid,
        "title": message.title,
        "message": message.description,
        "authors": [{"user": message.author, "avatar": ""}],
        "date": timestamp(commit.date),
    }


def _refs(repo: Repo, prefix: str) -> list[dict[str, str]]:
    refs = sorted(item for item in repo.refs.items() if item[0].startswith(prefix))
    return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid} for ref, oid in refs]


def _new_ref(repo: Repo, prefix: str, name: str, *, overwrite: bool = False) -> str:
    if not REF_NAME.fullmatch(name) or name.startswith("refs/"):
        raise Refusal(400, f"Invalid reference name: {name}")
    if prefix + name in repo.refs and not overwrite:
        raise Refusal(409, f"Reference already exists: {prefix}{name}")
    return prefix + name


def _delete_ref(repo: Repo, ref: str) -> Response:
    if ref not in repo.refs:
        raise Refusal(404, f"Reference not found: {ref}", code="RevisionNotFound")
    repo.delete_ref(ref)
    return JSONResponse({})


def _only_models(body: RepoName) -> None:
    if body.type != "model":
        raise Refusal(400, f"the rehearsal Hub holds models only, not repos of the type {body.type!r}")


REPO = "/api/models/{namespace:segment}/{name:segment}"
ROUTES = [
    Route("/api/whoami-v2", whoami),
    Route("/api/repos/create", create, methods=["POST"]),
    Route("/api/repos/delete", delete, methods=["DELETE"]),
    Route(f"{REPO}/settings", settings, methods=["PUT"]),
    Route(f"{REPO}/auth-check", auth_check),
    Route(f"{REPO}/auth-check/write", auth_check_write),
    Route(f"{REPO}/refs", refs),
    Route(f"{REPO}/commits/{{revision:segment}}", history),
    Route(f"{REPO}/branch/{{ref:segment}}", create_branch, methods=["POST"]),
    Route(f"{REPO}/branch/{{ref:segment}}", delete_branch, methods=["DELETE"]),
    Route(f"{REPO}/tag/{{ref:segment}}", create_tag, methods=["POST"]),
    Route(f"{REPO}/tag/{{ref:segment}}", delete_tag, methods=["DELETE"]),
]
