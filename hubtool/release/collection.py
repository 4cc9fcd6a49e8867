"""The collection that the repos of a release are shown in."""

from hubtool.hub.finish import add_to_collection
from hubtool.hub.patience import PatientHub
from hubtool.release.file import ReleaseFile


def _collect(hub: PatientHub, release: ReleaseFile) -> None:
    """Add every repo to the collection, which is made if there is none of its title."""
    wanted = release.collection
    slug = wanted.slug
    if slug is None and wanted.title is not None:
        title, namespace = wanted.title, _collection_owner(release)
        slug = hub.attempt(
            f"collection {title}",
            lambda: (
                hub.api.create_collection(
                    title, namespace=namespace, description=wanted.description, exists_ok=True
                ).slug
            ),
        )
    for planned in release.variants if slug else ():
        assert slug is not None
        add_to_collection(hub, slug, planned.destination.repo)


def _find_collection(hub: PatientHub, title: str | None, owner: str) -> str | None:
    found = hub.attempt(f"collection {title}", lambda: list(hub.api.list_collections(owner=owner)))
    return next((each.slug for each in found if each.title == title), None)


def _collection_owner(release: ReleaseFile) -> str:
    return release.variants[0].destination.repo.partition("/")[0]
