"""Pages for a browser: repos, the model page with its card, files with sizes and hashes, commits, discussions.

A browser has no token of its own: it asks for a name and password, and the password is the token.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hubtool.hub.page import bits_label, card_html, chips, environment
from hubtool.hub.rules import split_card
from hubtool.rehearsal.discussions import Discussions
from hubtool.rehearsal.hub import hub_of, readable_repo, token_of
from hubtool.rehearsal.info import describe, read_config
from hubtool.rehearsal.repos import Commit, File, Repo
from hubtool.rehearsal.wire import Refusal
from hubtool.units import format_parameters, format_size

SECURITY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'"
"""Nothing runs on a page, and nothing is loaded from elsewhere: pictures in a card come from the repo itself."""

TEXT_NBYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """A file or folder in a listing."""

    path: str
    name: str
    is_folder: bool
    size: str
    digest: str


@dataclass(frozen=True)
class Change:
    """What a commit did to a path."""

    kind: str
    path: str
    size: str


async def index(request: Request) -> Response:
    """All repos that the sender may see."""
    hub, token = hub_of(request), token_of(request)
    repos = [(repo, repo.resolve("main")) for repo in hub.repos if hub.accounts.may_read(token, repo)]
    hidden = sum(1 for _ in hub.repos) - len(repos)
    collections = [each for each in hub.collections if hub.accounts.may_see(token, each.owner, private=each.private)]
    return _page("index.html.jinja", repos=repos, hidden=hidden, collections=collections, user=token and token.user)


async def sign_in(request: Request) -> Response:
    """The list of repos, once the browser has sent a token."""
    if token_of(request) is None:
        raise Refusal(401, "The password is a token of this rehearsal Hub", headers=CHALLENGE)
    return RedirectResponse("/")


async def model(request: Request) -> Response:
    """The model page: chips, rendered card, and what the Hub reads off the files."""
    repo, commit = _at(request)
    hub = hub_of(request)
    info = describe(hub, repo, commit, blobs=False)
    card, tags, safetensors = info.get("cardData", {}), info["tags"], info.get("safetensors", {})
    assert isinstance(card, dict) and isinstance(tags, list) and isinstance(safetensors, dict)
    text = (hub.read_regular(commit.files.get("README.md")) or b"").decode("utf-8", "replace")
    revision = request.path_params.get("revision", "main")
    return _page(
        "model.html.jinja",
        **_common(repo, commit, revision, "card"),
        chips=chips(card, tags),
        card=card_html(split_card(text)[1], repo.name, revision),
        parameters=format_parameters(safetensors["total"]) if safetensors else None,
        dtypes=sorted(safetensors.get("parameters", {})),
        bits=bits_label(read_config(hub, commit)),
        base=card.get("base_model"),
        relation=card.get("base_model_relation"),
        size=format_size(sum(file.nbytes for file in commit.files.values())),
        tags=[ref.removeprefix("refs/tags/") for ref, oid in repo.refs.items() if ref.startswith("refs/tags/")],
    )


async def tree(request: Request) -> Response:
    """A folder: names, sizes, hashes."""
    repo, commit = _at(request)
    folder = request.path_params.get("path", "").strip("/")
    rows = list(_rows(commit, folder))
    if not rows:
        raise Refusal(404, f"{folder} does not exist on this revision")
    shown = _common(repo, commit, request.path_params["revision"], "files")
    return _page("tree.html.jinja", **shown, folder=folder, rows=rows)


async def blob(request: Request) -> Response:
    """A file: its size and hash, and its text if it is one."""
    repo, commit = _at(request)
    path = request.path_params["path"]
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, f"{path} does not exist on this revision")
    content = None if file.sha256 else hub_of(request).read_regular(file, TEXT_NBYTES)
    text = None if content is None or b"\0" in content else content.decode("utf-8", "replace")
    shown = _common(repo, commit, request.path_params["revision"], "files")
    return _page("blob.html.jinja", **shown, row=_row(path, path, file), text=text, is_lfs=file.sha256 is not None)


async def commits(request: Request) -> Response:
    """The history of a revision."""
    repo, commit = _at(request)
    shown = _common(repo, commit, request.path_params["revision"], "commits")
    return _page("commits.html.jinja", **shown, history=list(repo.history(commit)))


async def one_commit(request: Request) -> Response:
    """A commit, and what it changed."""
    repo, commit = _at(request)
    before = repo.commit(commit.parents[0]).files if commit.parents else {}
    shown = _common(repo, commit, commit.oid, "commits")
    return _page("commit.html.jinja", **shown, changes=list(_changes(before, commit.files)))


async def discussions(request: Request) -> Response:
    """All discussions and pull requests."""
    repo, commit = _at(request)
    shown = _common(repo, commit, "main", "community")
    return _page("discussions.html.jinja", **shown, discussions=list(reversed(list(Discussions(repo)))))


async def one_discussion(request: Request) -> Response:
    """One discussion or pull request."""
    repo, commit = _at(request)
    found = Discussions(repo).get(request.path_params["num"])
    comments = [
        (event, card_html(str(event.data["latest"]["raw"]), repo.name) if event.type == "comment" else None)  # type: ignore[index]
        for event in found.events
    ]
    return _page("discussion.html.jinja", **_common(repo, commit, "main", "community"), found=found, events=comments)


async def collection(request: Request) -> Response:
    """A collection."""
    hub = hub_of(request)
    found = hub.collections.get(request.path_params["slug"])
    if not hub.accounts.may_see(token_of(request), found.owner, private=found.private):
        raise Refusal(404, "Collection not found")
    return _page("collection.html.jinja", collection=found)


CHALLENGE = {"WWW-Authenticate": 'Basic realm="rehearsal Hub: the password is a token", charset="UTF-8"'}


def _at(request: Request) -> tuple[Repo, Commit]:
    """The repo and commit in the path.

    Raises:
        Refusal: 401, asking the browser for a token, where there may be a private repo.
    """
    try:
        repo = readable_repo(request)
    except Refusal as refusal:
        if refusal.status == 401:
            refusal.headers |= CHALLENGE
        raise
    return repo, repo.resolve(request.path_params.get("revision", "main"))


def _page(template: str, **shown: object) -> Response:
    html = environment().get_template(template).render(shown)
    return HTMLResponse(html, headers={"Content-Security-Policy": SECURITY, "X-Content-Type-Options": "nosniff"})


def _common(repo: Repo, commit: Commit, revision: str, tab: str) -> dict[str, object]:
    """What the head of every page of a repo shows."""
    count = sum(1 for _ in repo.history(commit))
    return {"repo": repo, "commit": commit, "revision": revision, "tab": tab, "commit_count": count}


def _rows(commit: Commit, folder: str) -> Iterable[Row]:
    inside = f"{folder}/" if folder else ""
    below = {path.removeprefix(inside): file for path, file in commit.files.items() if path.startswith(inside)}
    for name in sorted({path.split("/")[0] for path in below if "/" in path}):
        nbytes = sum(file.nbytes for path, file in below.items() if path.startswith(f"{name}/"))
        yield Row(inside + name, name, True, format_size(nbytes), "")
    for name, file in below.items():
        if "/" not in name:
            yield _row(inside + name, name, file)


def _row(path: str, name: str, file: File) -> Row:
    digest = f"sha256 {file.sha256}" if file.sha256 else f"git {file.oid}"
    return Row(path, name, False, format_size(file.nbytes), digest)


def _changes(before: dict[str, File], after: dict[str, File]) -> Iterable[Change]:
    for path in sorted(before | after):
        if before.get(path) != after.get(path):
            kind = "added" if path not in before else "deleted" if path not in after else "changed"
            yield Change(kind, path, format_size((after.get(path) or before[path]).nbytes))


REPO_PAGE = "/{namespace:segment}/{name:segment}"
ROUTES = [
    Route("/", index),
    Route("/login", sign_in),
    Route("/collections/{slug:slug}", collection),
    Route(REPO_PAGE, model),
    Route(f"{REPO_PAGE}/tree/{{revision:segment}}", tree),
    Route(f"{REPO_PAGE}/tree/{{revision:segment}}/{{path:rest}}", tree),
    Route(f"{REPO_PAGE}/blob/{{revision:segment}}/{{path:rest}}", blob),
    Route(f"{REPO_PAGE}/commits/{{revision:segment}}", commits),
    Route(f"{REPO_PAGE}/commit/{{revision:segment}}", one_commit),
    Route(f"{REPO_PAGE}/discussions", discussions),
    Route(f"{REPO_PAGE}/discussions/{{num:int}}", one_discussion),
]
