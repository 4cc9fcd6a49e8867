"""The collection that the repos of a release are shown in."""

from hubtool.hub.finish import add_to_collection
from hubtool.hub.patience import PatientHub
from hubtool.release.release import Release


def collect(hub: PatientHub, release: Release) -> None:
    """Add every repo to the collection, which is made if there is none of its title."""
    wanted = release.collection
    slug = wanted.slug
    if slug is None and wanted.title is not None:
        title, namespace = wanted.title, collection_owner(release)
        slug = hub.attempt(
            f"collection {title}",
            lambda: (
                hub.api.create_collection(
                    title, namespace=namespace, description=wanted.description, exists_ok=True
                ).slug
            ),
        )
    for variant in release.variants if slug else ():
        assert slug is not None
        add_to_collection(hub, slug, variant.destination.repo)


def find_collection(hub: PatientHub, title: str | None, owner: str) -> str | None:
    """The slug of an owner's collection of a title, None if there is none."""
    found = hub.attempt(f"collection {title}", lambda: list(hub.api.list_collections(owner=owner)))
    return next((each.slug for each in found if each.title == title), None)


def collection_owner(release: Release) -> str:
    """Whose collection it is: the namespace of the first variant."""
    return release.variants[0].destination.repo.partition("/")[0]
