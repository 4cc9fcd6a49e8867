"""Endpoints that read a repo's content: info, tree, paths, and the files themselves."""

from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal import git
from hubtool.rehearsal.api_repos import REPO
from hubtool.rehearsal.blobs import Blob
from hubtool.rehearsal.hub import hub_of, readable_repo, token_of
from hubtool.rehearsal.info import describe
from hubtool.rehearsal.repos import Commit, File, Repo
from hubtool.rehearsal.times import timestamp
from hubtool.rehearsal.wire import JSON_LIMIT, Refusal, page_of, read_body, truthy

ENTRIES_A_PAGE = 1000
EXPANDED_ENTRIES_A_PAGE = 50

Entry = dict[str, object]


async def model_info(request: Request) -> Response:
    """What the Hub says of a repo at a revision; with `blobs` sizes and hashes, with `expand` only these keys."""
    repo = readable_repo(request)
    commit = repo.resolve(request.path_params.get("revision", "main"))
    info = describe(hub_of(request), repo, commit, blobs=truthy(request.query_params.get("blobs")))
    wanted = request.query_params.getlist("expand") or request.query_params.getlist("expand[]")
    if wanted:
        info = {key: value for key, value in info.items() if key in {"_id", "id", "modelId", *wanted}}
    return JSONResponse(info)


async def models(request: Request) -> Response:
    """The repos that the sender may see, those of one author or with a text in their name, last changed first."""
    hub, query, token = hub_of(request), request.query_params, token_of(request)
    found = [
        (repo, repo.resolve("main"))
        for repo in hub.repos
        if query.get("author") in (None, repo.namespace)
        and query.get("search", "").lower() in repo.name.lower()
        and hub.accounts.may_read(token, repo)
    ]
    found.sort(key=lambda pair: pair[1].date, reverse=True)
    page, headers = page_of(request, found, ENTRIES_A_PAGE)
    return JSONResponse([describe(hub, repo, commit, blobs=False) for repo, commit in page], headers=headers)


async def tree(request: Request) -> Response:
    """The entries of a folder, or with `recursive` of everything below it, in pages."""
    repo = readable_repo(request)
    commit = repo.resolve(request.path_params["revision"])
    recursive = truthy(request.query_params.get("recursive"))
    expand = truthy(request.query_params.get("expand"))
    entries = _entries(commit, request.path_params.get("path", "").strip("/"), recursive=recursive)
    page, headers = page_of(request, entries, EXPANDED_ENTRIES_A_PAGE if expand else ENTRIES_A_PAGE)
    return JSONResponse(_expanded(repo, commit, page) if expand else page, headers=headers)


async def paths_info(request: Request) -> Response:
    """The entries of the paths asked for; paths that do not exist are left out."""
    repo = readable_repo(request)
    commit = repo.resolve(request.path_params["revision"])
    form = parse_qs((await read_body(request, JSON_LIMIT)).decode(), keep_blank_values=True)
    everything = {str(entry["path"]): entry for entry in _entries(commit, "", recursive=True)}
    found = [everything[path] for path in form.get("paths", []) if path in everything]
    return JSONResponse(_expanded(repo, commit, found) if truthy(form.get("expand", [""])[0]) else found)


async def resolve(request: Request) -> Response:
    """A file's bytes, or the range asked for."""
    repo = readable_repo(request)
    commit = repo.resolve(request.path_params["revision"])
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.files.get(request.path_params["path"])
    _check_gate(request, repo)
    if file is None:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
    # What a repo holds is somebody's content: a browser must neither run it nor guess its type.
    headers |= {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
    headers |= {"ETag": f'"{file.digest}"', "Content-Type": "application/octet-stream"}
    if file.sha256 is None:
        path = hub_of(request).blobs.regular(file.oid)
        return FileResponse(path, headers={**headers, "Content-Type": "text/plain; charset=utf-8"})
    headers |= {"X-Linked-ETag": f'"{file.digest}"', "X-Linked-Size": str(file.nbytes)}
    blob = hub_of(request).blobs.get(file.sha256)
    assert blob is not None, "a commit names only objects that were received"
    if blob.held < blob.nbytes:
        return _held_range(request, blob, headers)
    return FileResponse(blob.path, headers=headers)


def _check_gate(request: Request, repo: Repo) -> None:
    """Refuses files of a gated repo to those who may not write to it: nobody is ever granted access here.

    Raises:
        Refusal: GatedRepo, 403 with a token and 401 without.
    """
    token = token_of(request)
    if repo.settings.gated and (token is None or not hub_of(request).accounts.belongs_to(token, repo.namespace)):
        status = 401 if token is None else 403
        raise Refusal(status, f"Access to model {repo.name} is restricted", code="GatedRepo")


def _held_range(request: Request, blob: Blob, headers: dict[str, str]) -> Response:
    """A range of a discarded object; 410 where it passes what is held."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(blob.nbytes)})
    first, _, last = request.headers.get("range", "").removeprefix("bytes=").partition("-")
    start, end = int(first or 0), min(int(last or blob.nbytes - 1), blob.nbytes - 1)
    if start >= blob.nbytes:
        raise Refusal(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{blob.nbytes}"})
    if end >= blob.held:
        raise Refusal(410, f"only the first {blob.held} of {blob.nbytes} bytes were kept: this Hub discards tensors")
    with blob.path.open("rb") as file:
        file.seek(start)
        content = file.read(end + 1 - start)
    return Response(content, 206, {**headers, "Content-Range": f"bytes {start}-{end}/{blob.nbytes}"})


def _entries(commit: Commit, folder: str, *, recursive: bool) -> list[Entry]:
    """Folders and files at or below a folder.

    Raises:
        Refusal: 404 EntryNotFound, there is no such folder.
    """
    trees = git.tree_oids({path: file.oid for path, file in commit.files.items()})
    if folder not in trees:
        raise Refusal(404, f"{folder} does not exist on this revision", code="EntryNotFound")
    inside = f"{folder}/" if folder else ""
    found: dict[str, Entry] = {}
    for path, oid in trees.items():
        if path and path.startswith(inside) and (recursive or "/" not in path.removeprefix(inside)):
            found[path] = {"type": "directory", "oid": oid, "size": 0, "path": path}
    for path, file in commit.files.items():
        if path.startswith(inside) and (recursive or "/" not in path.removeprefix(inside)):
            found[path] = _file_entry(path, file)
    return [found[path] for path in sorted(found)]


def _file_entry(path: str, file: File) -> Entry:
    entry: Entry = {"type": "file", "oid": file.oid, "size": file.nbytes, "path": path}
    if file.sha256 is not None:
        pointer = len(git.lfs_pointer(file.sha256, file.nbytes))
        entry["lfs"] = {"oid": file.sha256, "size": file.nbytes, "pointerSize": pointer}
    return entry


def _expanded(repo: Repo, commit: Commit, entries: Iterable[Entry]) -> list[Entry]:
    """The entries with the commit that last changed each."""
    last = dict(_last_changes(repo, commit))
    expanded = []
    for entry in entries:
        path = str(entry["path"])
        below = [last[name] for name in commit.files if name == path or name.startswith(f"{path}/")]
        newest = max(below, key=lambda change: change.date)
        change = {"id": newest.oid, "title": newest.message.title, "date": timestamp(newest.date)}
        expanded.append({**entry, "lastCommit": change})
    return expanded


def _last_changes(repo: Repo, commit: Commit) -> Iterator[tuple[str, Commit]]:
    """Every path of a commit, and the commit that gave it its present content."""
    history = list(repo.history(commit))
    for path, file in commit.files.items():
        newest = commit
        for older in history:
            if older.files.get(path) != file:
                break
            newest = older
        yield path, newest


ROUTES = [
    Route("/api/models", models),
    Route(REPO, model_info),
    Route(f"{REPO}/revision/{{revision:segment}}", model_info),
    Route(f"{REPO}/tree/{{revision:segment}}", tree),
    Route(f"{REPO}/tree/{{revision:segment}}/{{path:rest}}", tree),
    Route(f"{REPO}/paths-info/{{revision:segment}}", paths_info, methods=["POST"]),
    Route("/{namespace:segment}/{name:segment}/resolve/{revision:segment}/{path:rest}", resolve),
]
