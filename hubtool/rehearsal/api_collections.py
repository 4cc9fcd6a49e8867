"""Endpoints of collections."""

import secrets

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubtool.rehearsal.collections import Collection, Collections, Item
from hubtool.rehearsal.hub import hub_of, require_right, required_token, token_of
from hubtool.rehearsal.times import timestamp
from hubtool.rehearsal.wire import Refusal, page_of, read_json

COLLECTIONS_A_PAGE = 100


class NewCollection(msgspec.Struct):
    """Body of a new collection."""

    title: str
    namespace: str
    description: str | None = None
    private: bool = False


class Changes(msgspec.Struct, omit_defaults=True):
    """Body of a change; what is absent stays."""

    title: str | None = None
    description: str | None = None
    private: bool | None = None
    theme: str | None = None
    position: int | None = None


class Target(msgspec.Struct):
    """What an item points to."""

    id: str
    type: str


class NewItem(msgspec.Struct):
    """Body of a new item."""

    item: Target
    note: str | None = None


class ItemChanges(msgspec.Struct):
    """Body of a change of an item; what is absent stays."""

    note: str | None = None
    position: int | None = None


async def listing(request: Request) -> Response:
    """The collections, those of one owner or with one item, last changed first."""
    owner, wanted = request.query_params.get("owner"), request.query_params.get("item")
    found = [
        collection
        for collection in sorted(hub_of(request).collections, key=lambda each: each.updated, reverse=True)
        if owner in (None, collection.owner)
        and (wanted is None or any(wanted in (item.id, f"{item.type}s/{item.id}") for item in collection.items))
        and _may_see(request, collection)
    ]
    page, headers = page_of(request, found, COLLECTIONS_A_PAGE)
    # In a list the position is the place in it, which the client counts itself.
    answer = [{key: value for key, value in _json(each).items() if key != "position"} for each in page]
    return JSONResponse(answer, headers=headers)


async def create(request: Request) -> Response:
    """The new collection."""
    token = required_token(request)
    body = await read_json(request, NewCollection)
    require_right(request, token, body.namespace)
    made = hub_of(request).collections.create(body.namespace, body.title, body.description, private=body.private)
    return JSONResponse(_json(made))


async def details(request: Request) -> Response:
    """One collection."""
    found = hub_of(request).collections.get(request.path_params["slug"])
    if not _may_see(request, found):
        raise Refusal(404, "Collection not found")
    return JSONResponse(_json(found))


async def update(request: Request) -> Response:
    """The collection after the change."""
    collections, found = _changeable(request)
    body = await read_json(request, Changes)
    given = {key: value for key, value in msgspec.structs.asdict(body).items() if value is not None}
    collections.check(msgspec.structs.replace(found, **given))
    for key, value in given.items():
        setattr(found, key, value)
    collections.save(found)
    return JSONResponse({"success": True, "data": _json(found)})


async def delete(request: Request) -> Response:
    """Nothing; the collection is gone."""
    collections, found = _changeable(request)
    collections.delete(found)
    return JSONResponse({"success": True})


async def add_item(request: Request) -> Response:
    """The collection with the new item at its end."""
    collections, found = _changeable(request)
    body = await read_json(request, NewItem)
    repo = hub_of(request).repos.get(body.item.id) if body.item.type == "model" else None
    if repo is None or not hub_of(request).accounts.may_read(token_of(request), repo):
        raise Refusal(404, f"there is no {body.item.type} {body.item.id} on this Hub")
    collections.add_item(found, Item(secrets.token_hex(12), repo.name, body.item.type, body.note))
    return JSONResponse(_json(found))


async def update_item(request: Request) -> Response:
    """Nothing; the item has its new note and place."""
    collections, found = _changeable(request)
    item = collections.item(found, request.path_params["item"])
    body = await read_json(request, ItemChanges)
    if body.note is not None:
        collections.check_note(body.note)
        item.note = body.note
    if body.position is not None:
        found.items.remove(item)
        found.items.insert(body.position, item)
    collections.save(found)
    return JSONResponse({"success": True})


async def delete_item(request: Request) -> Response:
    """Nothing; the item is gone."""
    collections, found = _changeable(request)
    found.items.remove(collections.item(found, request.path_params["item"]))
    collections.save(found)
    return JSONResponse({"success": True})


def _changeable(request: Request) -> tuple[Collections, Collection]:
    """The collection in the request's path, if the sender may change it."""
    collections = hub_of(request).collections
    found = collections.get(request.path_params["slug"])
    require_right(request, required_token(request), found.owner)
    return collections, found


def _may_see(request: Request, collection: Collection) -> bool:
    return hub_of(request).accounts.may_see(token_of(request), collection.owner, private=collection.private)


def _json(collection: Collection) -> dict[str, object]:
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.owner},
        "lastUpdated": timestamp(collection.updated),
        "position": collection.position,
        "private": collection.private,
        "theme": collection.theme,
        "upvotes": 0,
        "items": [_item_json(item, at) for at, item in enumerate(collection.items)],
    }


def _item_json(item: Item, position: int) -> dict[str, object]:
    found: dict[str, object] = {"_id": item.object_id, "id": item.id, "type": item.type, "position": position}
    return found | ({"note": {"text": item.note}} if item.note is not None else {})


SLUG = "/api/collections/{slug:slug}"
ROUTES = [
    Route("/api/collections", listing),
    Route("/api/collections", create, methods=["POST"]),
    Route(SLUG, details),
    Route(SLUG, update, methods=["PATCH"]),
    Route(SLUG, delete, methods=["DELETE"]),
    Route(f"{SLUG}/items", add_item, methods=["POST"]),
    Route(f"{SLUG}/items/{{item:segment}}", update_item, methods=["PATCH"]),
    Route(f"{SLUG}/items/{{item:segment}}", delete_item, methods=["DELETE"]),
]
