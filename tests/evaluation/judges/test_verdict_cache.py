import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from full_disk import no_file_larger_than
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Judge, ignore
from overopt.evaluation.judges.verdict_cache import Cached, VerdictCache, verdict_key
from overopt.evaluation.records import Comparison, Verdict

SETTINGS = {"judge": "counting"}
COMPARISONS = [Comparison(str(i), f"post {i}", sample=f"sample {i}", opponent=f"opponent {i}") for i in range(20)]


class Counting(Judge):
    """Remembers what it was asked; may fail after some answers."""

    settings = SETTINGS

    def __init__(self, answers=10**6):
        self.answers, self.asked = answers, []

    def judge(self, comparisons, on_verdict=ignore, budget=None):
        verdicts = []
        for place, comparison in enumerate(comparisons):
            if len(self.asked) == self.answers:
                raise ValueError("out of answers")
            self.asked.append(comparison)
            verdicts.append(Verdict("win", 1.0, answer=f"of {comparison.sample}", cost=0.5, input_tokens=7))
            on_verdict(place, verdicts[-1])
        return verdicts


@pytest.fixture
def cache(tmp_path) -> VerdictCache:
    return VerdictCache(tmp_path / "new" / "verdicts.db")


def test_what_was_answered_is_never_asked_again_and_comes_back_whole(cache):
    first, second = Counting(), Counting()
    there = Cached(first, cache).judge(COMPARISONS)
    again = Cached(second, VerdictCache(cache.path)).judge(COMPARISONS)
    assert len(first.asked) == 20
    assert not second.asked
    assert again == there
    assert [v.answer for v in again] == [f"of sample {i}" for i in range(20)]


def test_verdicts_are_kept_one_by_one_so_that_a_judge_that_fails_loses_none(cache):
    told = []
    with pytest.raises(ValueError, match="out of answers"):
        Cached(Counting(answers=7), cache).judge(COMPARISONS, lambda place, _: told.append(place))
    assert told == list(range(7))
    going_on = Counting()
    assert len(Cached(going_on, cache).judge(COMPARISONS)) == 20
    assert going_on.asked == COMPARISONS[7:]


def test_an_equal_comparison_is_asked_once_and_answered_everywhere(cache):
    counting, told = Counting(), []
    verdicts = Cached(counting, cache).judge([*COMPARISONS[:3], *COMPARISONS[:3]], lambda p, _: told.append(p))
    assert len(counting.asked) == 3
    assert verdicts[:3] == verdicts[3:]
    assert sorted(told) == list(range(6))


def test_what_known_verdicts_once_cost_counts_as_spent(cache):
    Cached(Counting(), cache).judge(COMPARISONS)
    budget = Budget()
    Cached(Counting(), cache).judge(COMPARISONS, budget=budget)
    assert budget.spent == 10.0


@pytest.mark.parametrize("changed", ["prompt", "sample", "opponent", "reference"])
def test_every_text_is_part_of_the_key(changed):
    assert verdict_key(SETTINGS, COMPARISONS[0]) != verdict_key(
        SETTINGS, replace(COMPARISONS[0], **{changed: "something else"})
    )


def test_order_and_settings_are_part_of_the_key_and_the_prompts_name_is_not():
    there = COMPARISONS[0]
    assert verdict_key(SETTINGS, there) != verdict_key(
        SETTINGS, replace(there, sample=there.opponent, opponent=there.sample)
    )
    assert verdict_key(SETTINGS, there) != verdict_key({**SETTINGS, "temperature": "1"}, there)
    assert verdict_key(SETTINGS, there) == verdict_key(SETTINGS, replace(there, prompt_id="another name"))


def test_two_on_one_question_leave_the_first_answer(cache):
    cache.keep("key", Verdict("win", 1.0), SETTINGS)
    VerdictCache(cache.path).keep("key", Verdict("loss", 0.0), SETTINGS)
    assert cache.known(["key"]) == {"key": Verdict("win", 1.0)}


def worker(path: Path, log: Path, first: int) -> None:
    class Slow(Judge):
        settings = SETTINGS

        def judge(self, comparisons, on_verdict=ignore, budget=None):
            verdicts = []
            for place, comparison in enumerate(comparisons):
                with log.open("a") as file:
                    file.write(f"{comparison.prompt_id}\n")
                time.sleep(0.002)
                verdicts.append(Verdict("win", 1.0))
                on_verdict(place, verdicts[-1])
            return verdicts

    comparisons = [Comparison(str(i), f"post {i}", "a", "b") for i in range(first, first + 200)]
    assert len(Cached(Slow(), VerdictCache(path)).judge(comparisons)) == 200


def test_workers_at_the_same_time_ask_nothing_twice(tmp_path):
    path, log = tmp_path / "verdicts.db", tmp_path / "log"
    context = multiprocessing.get_context("fork")
    # Each shares half of its comparisons with the next one.
    workers = [context.Process(target=worker, args=(path, log, first)) for first in (0, 100, 200, 300)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0] * 4
    asked = log.read_text().split()
    assert sorted(map(int, asked)) == list(range(500))
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM verdicts").fetchone() == (500,)
        assert database.execute("SELECT count(*) FROM under_way").fetchone() == (0,)


KILLED = """
import sys
from pathlib import Path
from overopt.evaluation.judges.protocol import Judge, ignore
from overopt.evaluation.judges.verdict_cache import Cached, VerdictCache
from overopt.evaluation.records import Comparison, Verdict

class Many(Judge):
    settings = {"judge": "counting"}
    def judge(self, comparisons, on_verdict=ignore, budget=None):
        for place in range(len(comparisons)):
            on_verdict(place, Verdict("win", 1.0))
            if place == 99:
                print("hundred", flush=True)

comparisons = [Comparison(str(i), f"post {i}", "a", "b") for i in range(5000)]
Cached(Many(), VerdictCache(Path(sys.argv[1]))).judge(comparisons)
"""


def test_a_worker_killed_while_it_writes_leaves_a_whole_cache_and_no_claims(tmp_path):
    path = tmp_path / "verdicts.db"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "hundred\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (kept,) = database.execute("SELECT count(*) FROM verdicts").fetchone()
    assert 100 <= kept < 5000
    counting = Counting()
    comparisons = [Comparison(str(i), f"post {i}", "a", "b") for i in range(5000)]
    # At once: a dead process's claims hold nobody up.
    assert len(Cached(counting, VerdictCache(path)).judge(comparisons)) == 5000
    assert len(counting.asked) == 5000 - kept


def test_a_cache_of_another_version_is_left_alone(cache):
    with sqlite3.connect(cache.path) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(ValueError, match=r"verdicts\.db is a verdict cache of version 7, this overopt reads version 1"):
        VerdictCache(cache.path)


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(ValueError, match="another program's database"):
        VerdictCache(path)


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be taken for one by its size alone " * 20)
    with pytest.raises(ValueError, match=r"notes\.txt is no verdict cache"):
        VerdictCache(path)
    assert path.read_text().startswith("not a database")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/verdicts\.db is no verdict cache"):
        VerdictCache(tmp_path / "file" / "verdicts.db")


def test_a_full_disk_is_one_line_and_costs_no_earlier_verdict(cache):
    Cached(Counting(), cache).judge(COMPARISONS)
    long = Verdict("win", 1.0, answer="word " * 200_000)
    with no_file_larger_than(500_000), pytest.raises(ValueError, match=r"verdicts\.db can't be written") as error:
        cache.keep("too long", long, SETTINGS)
    assert "\n" not in str(error.value)
    known = Counting()
    Cached(known, VerdictCache(cache.path)).judge(COMPARISONS)
    assert not known.asked
    cache.keep("too long", long, SETTINGS)
    assert cache.known(["too long"]) == {"too long": long}


def test_another_programs_database_is_not_changed_by_a_byte(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another program's database"):
        VerdictCache(path)
    assert path.read_bytes() == before
