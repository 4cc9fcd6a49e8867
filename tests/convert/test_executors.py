"""Pieces that are made elsewhere: by other threads, by processes, by whatever is a `concurrent.futures.Executor`."""

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from huggingface_hub import HfApi

from hubtool.checkpoint.open import open_source
from hubtool.checkpoint.remote import HubSource
from hubtool.checkpoint.source import LocalSource, Source
from hubtool.convert import convert as conversion
from hubtool.convert.convert import convert_folders
from hubtool.convert.engine import Makers, make, make_task
from hubtool.convert.job import ERROR_ROWS, Effort, Job
from hubtool.convert.journal import Journal
from hubtool.convert.opened import open_folders
from hubtool.errors import HubtoolError, SourceError
from hubtool.plan.plan import Plan, make_plan, plan_source
from hubtool.rehearsal import RehearsalHub
from hubtool.units import KIB
from tests.checkpoints import copied, edit_json, edit_tensors, file_bytes
from tests.convert.passes import convert
from tests.fixtures import QUIET, Samples

# huggingface_hub 2.4 itself hands files to its HTTP client in the way that client warns about.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

T = TypeVar("T")

RECIPES = ("mixed_3_6", "native", "float32")


class Posted(Executor):
    """Runs what it is given on threads of its own, and sends all of it through pickle, as processes do.

    Attributes:
        sizes: Bytes of each call that was sent.
    """

    def __init__(self, threads: int = 3) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self.sizes: list[int] = []

    def submit(self, call: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """The future of a call that was made of bytes, and whose result is."""
        sent = pickle.dumps((call, arguments, options))
        self.sizes.append(len(sent))
        return self._pool.submit(_answer, sent)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End its threads."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _answer(sent: bytes) -> Any:
    call, arguments, options = pickle.loads(sent)
    try:
        return pickle.loads(pickle.dumps(call(*arguments, **options)))
    except HubtoolError as error:
        raise pickle.loads(pickle.dumps(error)) from None


def split_plans(source: Source) -> tuple[Plan, ...]:
    """Plans with a module's tensors in two shards."""
    plans = plan_source(source, RECIPES)
    return tuple(make_plan(plan.model, plan.recipe, plan.nbytes // 7) for plan in plans)


def run(folder: Path, out: Path, executor: Executor | None = None) -> dict[str, dict[str, str]]:
    """Hashes of the shards, and the journal's errors, of all recipes in one pass."""
    source = open_source(str(folder))
    work = [Job(plan, out / plan.recipe.name) for plan in split_plans(source)]
    for _ in convert(source, work, executor=executor):
        pass
    found = {job.folder.name: file_bytes(job.folder) for job in work}
    errors = {job.folder.name: str(sorted(Journal(job.folder).load().errors.items())) for job in work}
    return found | {"errors": errors}


@pytest.fixture(scope="module")
def on_threads(sample: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What the threads of this process make."""
    made = run(sample("mini"), tmp_path_factory.mktemp("threads"))
    assert all(made[recipe] for recipe in RECIPES) and "(" in made["errors"]["mixed_3_6"]
    return made


def test_bytes_are_those_of_threads_when_tasks_and_results_are_sent(
    sample: Samples, on_threads: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with Posted() as executor:
        assert run(sample("mini"), tmp_path, executor) == on_threads
        assert len(executor.sizes) == sum(1 for _ in split_plans(open_source(str(sample("mini"))))[0].pieces())


def test_bytes_are_those_of_threads_when_processes_make_them(
    sample: Samples, on_threads: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert run(sample("mini"), tmp_path, executor) == on_threads


@pytest.mark.parametrize("recipe", ["mixed_3_6", "native", "bf16"])
def test_task_of_a_published_model_is_small(recipe: str, published: Samples) -> None:
    """A stacked parameter of V4-Flash has 256 parts: a piece takes one of them, and its task names no other."""
    source = open_source(str(published("flash")))
    (plan,) = plan_source(source, [recipe])
    pieces = [piece for piece in plan.pieces() if piece.step % 40 == 0 or piece.first_part % 100 == 99]
    assert max(piece.first_part for piece in pieces) > 200
    sizes = [len(pickle.dumps(make_task(source.spec, piece, [plan.steps[piece.step]], ERROR_ROWS))) for piece in pieces]
    assert max(sizes) < 3 * KIB
    source.close()


def test_result_is_its_callers_own(sample: Samples) -> None:
    """A second piece made on the same thread leaves the first as it was."""
    source = open_source(str(sample("mini")))
    (plan,) = plan_source(source, ["mixed_3_6"])
    quantized = [piece for piece in plan.pieces() if plan.steps[piece.step].how == "quantize"]
    tasks = [make_task(source.spec, piece, [plan.steps[piece.step]], ERROR_ROWS) for piece in quantized[:6]]
    first = make(tasks[0])
    before = [array.copy() for array in first.steps[0].arrays]
    for task in tasks[1:]:
        make(task)
    for array, kept in zip(first.steps[0].arrays, before, strict=True):
        assert np.array_equal(array, kept)


def test_failure_elsewhere_arrives_with_its_words(sample: Samples, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("attn.wq_a.weight"))
        tensors[name] = type(tensors[name])(
            tensors[name].dtype, tensors[name].shape, b"\x7f" * len(tensors[name].data), tensors[name].file
        )

    source = edit_tensors(copied(sample("mini"), tmp_path / "source"), spoil)
    with (
        Posted() as executor,
        pytest.raises(SourceError, match=r"attn\.wq_a\.weight: not finite: found E4M3") as caught,
    ):
        run(source, tmp_path / "out", executor)
    assert caught.value.remedy == "fetch its shard again, or report the checkpoint"


def test_worker_that_sees_another_checkpoint_under_the_path_is_refused(sample: Samples, tmp_path: Path) -> None:
    folder = copied(sample("mini"), tmp_path / "source")
    source = LocalSource(folder)
    (plan,) = plan_source(source, ["native"])
    task = make_task(source.spec, next(plan.pieces()), [plan.steps[0]], 0)
    edit_json(folder / "config.json", lambda config: config.update(note=1))
    with pytest.raises(SourceError, match="another checkpoint than the one that is converted"):
        make(task)


def test_interrupted_run_leaves_nothing_running_and_goes_on(
    sample: Samples, on_threads: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with Posted(1) as executor:
        source = open_source(str(sample("mini")))
        work = [Job(plan, tmp_path / plan.recipe.name) for plan in split_plans(source)]
        with closing(convert(source, work, executor=executor)) as steps:
            for _, _ in zip(range(40), steps, strict=False):
                pass
        sent = len(executor.sizes)
        assert executor.submit(len, "ok").result(timeout=30) == 2
        assert len(executor.sizes) == sent + 1
        assert run(sample("mini"), tmp_path, executor) == on_threads


def test_source_on_the_hub_is_opened_again_at_its_commit(
    rehearsal: RehearsalHub, hub_api: HfApi, sample: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker reads from the Hub itself, with a token of its own; what it read unverified is recorded."""
    hub_api.create_repo("someone/source", private=True)
    hub_api.upload_folder(repo_id="someone/source", folder_path=sample("mini"))
    source = HubSource("someone/source", api=hub_api)
    hub_api.delete_file("config.json", "someone/source")
    monkeypatch.setenv("HF_TOKEN", rehearsal.token)
    (plan,) = plan_source(source, ["native"])
    with Posted() as executor, open_folders(source, [Job(plan, tmp_path / "out")], Effort(), QUIET) as opened:
        assert rehearsal.token.encode() not in pickle.dumps(source.spec)
        (made,) = convert_folders(opened, QUIET, executor)
    read = {source.tensors[part.weight].file for step in plan.steps for part in step.parameter.parts}
    assert set(made.record.source.unverified) == read
    (local,) = conversion.convert_sources(
        open_source(str(sample("mini"))), [Job(plan, tmp_path / "local")], Effort(), QUIET
    )
    assert made.record.files == local.record.files


def test_makers_hand_each_piece_to_its_sink_once(sample: Samples) -> None:
    source = open_source(str(sample("mini")))
    (plan,) = plan_source(source, ["mixed_3_6"])
    pieces = list(plan.pieces())
    with Makers(source, 3, ERROR_ROWS) as makers:
        made = [
            makers.submit(piece, [plan.steps[piece.step]], lambda made: made.steps[0].checksums) for piece in pieces
        ]
        found = [future.result() for future in made]
    for checksums, piece in list(zip(found, pieces, strict=True))[::17]:
        assert make(make_task(source.spec, piece, [plan.steps[piece.step]], ERROR_ROWS)).steps[0].checksums == checksums
