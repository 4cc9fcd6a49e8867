"""The protocol by which runs say how they go."""

import itertools
import threading

from hubtool.progress import HighWater, Named
from tests.fixtures import Counting


def test_a_byte_counts_once_however_often_it_is_done_again() -> None:
    counted: list[int] = []
    mark = HighWater(counted.append)
    for done in (3, 10, 2, 10, 0, 11, 7, 11):
        mark.reach(done)
    assert counted == [3, 7, 1]


def test_a_byte_counts_once_though_threads_report_it_at_the_same_time() -> None:
    counted: list[int] = []
    mark = HighWater(counted.append)

    def count(start: int) -> None:
        for done in range(start, 5000, 3):
            mark.reach(done)

    threads = [threading.Thread(target=count, args=(start,)) for start in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 4999 and min(counted) > 0


def test_stages_of_a_variant_carry_its_name_and_what_is_said_does_not() -> None:
    watch = Counting()
    named = Named(Named(watch, "mixed_3_6"), "again")
    for name, nbytes in itertools.product(["send", "commit"], [7]):
        with named.stage(name, nbytes) as advance:
            advance(3, "a", found=True)
            advance(4, "b")
    named.say("a fact")
    assert watch.stages == [("mixed_3_6: again: send", 7), ("mixed_3_6: again: commit", 7)]
    assert watch.counted("mixed_3_6: again: send") == {"a": 3, "b": 4}
    assert watch.found["mixed_3_6: again: send", "a"] == 3
    assert watch.said == ["a fact"]
