"""How far each variant of a release is, by its folder and by what the Hub says."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, get_token

from hubtool.errors import HubError, VerificationError
from hubtool.hub.destination import Destination
from hubtool.hub.finish import default_tag
from hubtool.hub.patience import NOT_FOUND, NOT_SHOWN, PatientHub, refused_status
from hubtool.hub.reader import has_record, read_hub_record
from hubtool.hub.upload import find_tag, published_names
from hubtool.hub.verify import verify
from hubtool.progress import Watch
from hubtool.record import Record, read_record
from hubtool.release.collection import collection_owner, find_collection
from hubtool.release.folder import PATIENCE
from hubtool.release.release import Release, Variant

State = Literal["yes", "no", "differs", "withdrawn", "unknown"]


@dataclass(frozen=True)
class VariantStatus:
    """How far a variant is.

    Attributes:
        recipe: Its recipe.
        repo: Its repo.
        converted: Whether its folder is finished.
        state: Whether the repo has exactly the folder's files: `yes`, `no` (there is no repo), `differs`, `withdrawn`
            (the repo says so, the folder does not), or `unknown` (the Hub could not be asked, or tells it only to
            others).
        published: The commit of the repo that has exactly the folder's files, None if there is none.
        problems: What the repo lacks or has otherwise, or what else is still to be done with it.
        tagged: Whether the tag of the release names a commit that has the folder's record.
    """

    recipe: str
    repo: str
    converted: bool
    state: State
    published: str | None
    problems: tuple[str, ...]
    tagged: bool

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.published is not None and self.tagged and not self.problems


def release_status(api: HfApi, release: Release, watch: Watch) -> list[VariantStatus]:
    """How far each variant is, by its folder and by what the Hub says.

    Raises:
        HubError: The Hub refused, or could not be reached.
    """
    hub = PatientHub(api, PATIENCE, watch.say)
    return [_variant_status(hub, release, variant) for variant in release.variants]


def _variant_status(hub: PatientHub, release: Release, variant: Variant) -> VariantStatus:
    to, folder = variant.destination, variant.folder
    record = read_record(folder) if folder.is_dir() else None
    name = Path(variant.recipe or "").stem
    if record is None:
        return VariantStatus(name, to.repo, False, "no", None, ("not converted",), False)
    if record.repo is None:
        return VariantStatus(name, to.repo, True, "no", None, ("not published",), False)
    # The Hub's hashes of all else are compared with the record, which is one of these.
    names = [each for each in published_names(record, folder) if each not in record.hashes()]
    try:
        if (reason := _withdrawal(hub, to, record)) is not None:
            return VariantStatus(name, to.repo, True, "withdrawn", None, (reason,), False)
        seen = verify(hub, to.repo, revision=to.revision, folder=folder, names=names)
        if seen.problems:
            return VariantStatus(name, to.repo, True, "differs", None, seen.problems, False)
        tagged = find_tag(hub, to.repo, to.tag or default_tag(record))
        whole = tagged is not None and has_record(hub, to.repo, tagged, record)
        left = tuple(_left(hub, release, to))
    except VerificationError as error:
        return VariantStatus(name, to.repo, True, "differs", None, (str(error),), False)
    except HubError as error:
        return VariantStatus(name, to.repo, True, *_not_seen(hub, error), False)
    return VariantStatus(name, to.repo, True, "yes", seen.commit, left, whole)


def _withdrawal(hub: PatientHub, to: Destination, record: Record) -> str | None:
    """That a repo was withdrawn since the folder was published, as a sentence, None if it was not."""
    head = hub.attempt(to.repo, lambda: hub.api.model_info(to.repo, revision=to.revision).sha)
    assert head is not None
    withdrawn = read_hub_record(hub, to.repo, head).withdrawn
    if withdrawn is None or record.withdrawn is not None:
        return None
    return f"withdrawn on {withdrawn.date[:10]}: {withdrawn.reason}"


def _not_seen(hub: PatientHub, error: HubError) -> tuple[State, None, tuple[str, ...]]:
    """What is known of a repo that the Hub did not show."""
    status = refused_status(error)
    if status not in NOT_SHOWN:
        return "unknown", None, (f"the Hub could not be asked: {error}",)
    if hub.api.token is None and get_token() is None:
        return "unknown", None, (f"there is no token, and a private repo is shown to its owners alone: {error}",)
    return ("no", None, ("not published",)) if status == NOT_FOUND else ("unknown", None, (str(error),))


def _left(hub: PatientHub, release: Release, to: Destination) -> Iterator[str]:
    """What is still to be done with a repo that has every file."""
    if to.public_after_verify and hub.attempt(to.repo, lambda: hub.api.model_info(to.repo)).private:
        yield "still private"
    wanted = release.collection
    if wanted.slug is None and wanted.title is None:
        return
    slug = wanted.slug or find_collection(hub, wanted.title, collection_owner(release))
    collected = slug and hub.attempt(f"collection {slug}", lambda: hub.api.get_collection(slug))
    if not collected or to.repo not in [item.item_id for item in collected.items]:
        yield f"not in the collection {wanted.slug or wanted.title}"
