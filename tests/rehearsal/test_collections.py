"""Collections through the stock client."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubtool.rehearsal import RehearsalHub


def test_collection_is_made_filled_and_changed(api: HfApi) -> None:
    for name in ("a", "b"):
        api.create_repo(f"someone/{name}")
    made = api.create_collection("My Models, v1", namespace="someone", description="All of them")
    assert made.slug.startswith("someone/my-models-v1-") and made.items == []
    for name in ("a", "b"):
        api.add_collection_item(made.slug, f"someone/{name}", "model", note=f"This is {name}")
    found = api.get_collection(made.slug)
    assert [(item.item_id, item.item_type, item.note) for item in found.items] == [
        ("someone/a", "model", "This is a"),
        ("someone/b", "model", "This is b"),
    ]
    api.update_collection_item(made.slug, found.items[1].item_object_id, position=0, note="First")
    changed = api.update_collection_metadata(made.slug, title="My Models, v2", theme="pink")
    assert changed.slug.startswith("someone/my-models-v2-") and changed.theme == "pink"
    assert [item.note for item in api.get_collection(made.slug).items] == ["First", "This is a"]
    api.delete_collection_item(made.slug, found.items[0].item_object_id)
    api.delete_collection_item(made.slug, found.items[0].item_object_id, missing_ok=True)
    assert [item.item_id for item in api.get_collection(changed.slug).items] == ["someone/b"]
    assert [each.slug for each in api.list_collections(owner="someone", item="models/someone/b")] == [changed.slug]
    api.delete_collection(changed.slug)
    assert list(api.list_collections(owner="someone")) == []


def test_what_is_there_already_is_found_again(api: HfApi) -> None:
    api.create_repo("someone/a")
    made = api.create_collection("Models", namespace="someone")
    assert api.create_collection("Models", namespace="someone", exists_ok=True).slug == made.slug
    for _ in range(2):
        api.add_collection_item(made.slug, "someone/a", "model", exists_ok=True)
    assert len(api.get_collection(made.slug).items) == 1


@pytest.mark.parametrize(
    ("item", "note", "status"), [("someone/absent", None, 404), ("someone/a", "x" * 501, 400), ("someone/b", None, 409)]
)
def test_items_that_the_hub_refuses(api: HfApi, item: str, note: str | None, status: int) -> None:
    api.create_repo("someone/a")
    api.create_repo("someone/b")
    made = api.create_collection("Models", namespace="someone")
    api.add_collection_item(made.slug, "someone/b", "model")
    with pytest.raises(HfHubHTTPError) as refused:
        api.add_collection_item(made.slug, item, "model", note=note)
    assert refused.value.response.status_code == status
    assert len(api.get_collection(made.slug).items) == 1


def test_collections_are_their_owners_and_survive_a_restart(tmp_path: Path) -> None:
    with RehearsalHub(tmp_path / "data") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        slug = api.create_collection("Hidden", namespace="someone", private=True).slug
        with pytest.raises(HfHubHTTPError):
            api.create_collection("Long", namespace="someone", description="x" * 151)
    with RehearsalHub(tmp_path / "data") as hub:
        assert HfApi(endpoint=hub.endpoint, token=hub.token).get_collection(slug).title == "Hidden"
        hub.accounts.add_user("ann")
        ann = HfApi(endpoint=hub.endpoint, token=hub.accounts.add_token("ann", "write"))
        assert list(ann.list_collections(owner="someone")) == []
        with pytest.raises(HfHubHTTPError):
            ann.get_collection(slug)
        with pytest.raises(HfHubHTTPError) as refused:
            ann.delete_collection(slug)
        assert refused.value.response.status_code == 403
