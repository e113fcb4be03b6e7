"""Verdicts on disk, shared by concurrent workers: what has been answered is never asked again."""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Estimate, Judge, OnVerdict, ignore
from overopt.evaluation.records import Comparison, Verdict

VERSION = 1
# "over" as SQLite's application id: tells our files from other SQLite files.
_APPLICATION_ID = 0x6F766572
# Another worker writes for milliseconds at a time. [s]
_BUSY_TIMEOUT = 60.0
# Between looks for the answers that another worker is waiting for. [s]
_LOOK_AGAIN = 0.5
# SQLite takes so many values in one statement, at least.
_AT_A_TIME = 500


class VerdictCache:
    """A SQLite file of verdicts by key, and of the questions that are under way, by process.

    Any number of processes of one machine may use a file at once, and any of them may be killed at any moment. Each
    verdict is on disk before the next is waited for. (On network file systems SQLite's locks do not hold.)

    Args:
        path: the file; made, with its folder, when missing.

    Raises:
        ValueError: the file is something else, or a cache of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
            with self._transaction():
                self._check_or_make()
            # Not before: another program's file is not even switched to another journal.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"{path} is no verdict cache ({error}): name another file with --cache") from error

    def _check_or_make(self) -> None:
        (application,) = self._database.execute("PRAGMA application_id").fetchone()
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            self._database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._database.execute(f"PRAGMA user_version = {VERSION}")
            self._database.execute(
                "CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, judge TEXT NOT NULL, "
                "judged_at TEXT NOT NULL) WITHOUT ROWID"
            )
            self._database.execute(
                "CREATE TABLE under_way (key TEXT PRIMARY KEY, pid INTEGER NOT NULL, process_started REAL NOT NULL) "
                "WITHOUT ROWID"
            )
        elif application != _APPLICATION_ID:
            raise ValueError(f"{self.path} is another program's database: name another file with --cache")
        elif version != VERSION:
            raise ValueError(
                f"{self.path} is a verdict cache of version {version}, this overopt reads version {VERSION}: name "
                "another file with --cache, or use the overopt that wrote it"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate: two readers that both turn writers would wait for each other for ever.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:  # a full disk has rolled it back already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise ValueError(
                f"verdict cache {self.path} can't be written ({error}): what is in it stays; make room, or name "
                "another file with --cache"
            ) from error

    def known(self, keys: Sequence[str]) -> dict[str, Verdict]:
        """Verdicts of those keys that have one."""
        found: dict[str, Verdict] = {}
        for first in range(0, len(keys), _AT_A_TIME):
            some = keys[first : first + _AT_A_TIME]
            marks = ", ".join("?" * len(some))
            rows = self._database.execute(f"SELECT key, verdict FROM verdicts WHERE key IN ({marks})", some)
            found |= {key: Verdict(**json.loads(verdict)) for key, verdict in rows}
        return found

    def keep(self, key: str, verdict: Verdict, settings: Mapping[str, str]) -> None:
        """Put a verdict on disk; of two on the same question the first one stays.

        Raises:
            ValueError: the disk is full, or the file gone bad.
        """
        row = (
            key,
            json.dumps(asdict(verdict)),
            json.dumps(dict(settings)),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        with self._writing():
            self._database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", row)
            self._database.execute("DELETE FROM under_way WHERE key = ?", (key,))

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Take those keys that have no verdict and that no other live process is asking about."""
        pid, started = os.getpid(), psutil.Process().create_time()
        with self._writing():
            known = self.known(keys).keys()
            owners = {key: owner for key, *owner in self._database.execute("SELECT * FROM under_way")}
            free = [key for key in keys if key not in known and not (key in owners and _is_another(*owners[key]))]
            self._database.executemany(
                "INSERT OR REPLACE INTO under_way VALUES (?, ?, ?)", [(key, pid, started) for key in free]
            )
        return free

    def release(self, keys: Sequence[str]) -> None:
        """Give claims back that came to nothing."""
        with self._writing():
            self._database.executemany("DELETE FROM under_way WHERE key = ?", [(key,) for key in keys])


def _is_another(pid: int, started: float) -> bool:
    """Whether a claim is of another process that is alive; process ids are used again, starting times are not."""
    if pid == os.getpid():
        return False
    try:
        return bool(psutil.Process(pid).create_time() == started)
    except psutil.Error:
        return False


class Cached(Judge):
    """A judge whose verdicts are kept, and which is asked only what nobody has asked before.

    Where another process is asking the same, its answer is waited for. It belongs inside of what swaps the order, so
    that each order is kept.

    Args:
        judge: answers what is new.
        cache: where verdicts are kept.
    """

    def __init__(self, judge: Judge, cache: VerdictCache) -> None:
        self._judge = judge
        self._cache = cache

    @property
    def reads_both(self) -> bool:
        """As the judge does."""
        return self._judge.reads_both

    @property
    def settings(self) -> dict[str, str]:
        """The judge's."""
        return self._judge.settings

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Verdicts, known ones first; what they once cost counts as spent."""
        budget = budget or Budget()
        settings = self.settings
        places: dict[str, list[int]] = {}
        for place, comparison in enumerate(comparisons):
            places.setdefault(verdict_key(settings, comparison), []).append(place)
        verdicts: list[Verdict] = [Verdict("unreadable", None)] * len(comparisons)

        def found(key: str, verdict: Verdict) -> None:
            for place in places[key]:
                verdicts[place] = verdict
                on_verdict(place, verdict)

        missing = list(places)
        while missing:
            known = self._cache.known(missing)
            for key, verdict in known.items():
                budget.spend(verdict.cost or 0.0)
                found(key, verdict)
            missing = [key for key in missing if key not in known]
            if not missing:
                break
            if claimed := self._cache.claim(missing):
                self._ask(claimed, [comparisons[places[key][0]] for key in claimed], settings, found, budget)
                missing = sorted(set(missing) - set(claimed), key=missing.index)
            else:
                time.sleep(_LOOK_AGAIN)
        return verdicts

    def _ask(
        self,
        keys: Sequence[str],
        comparisons: Sequence[Comparison],
        settings: Mapping[str, str],
        found: Callable[[str, Verdict], None],
        budget: Budget,
    ) -> None:
        def keep(place: int, verdict: Verdict) -> None:
            self._cache.keep(keys[place], verdict, settings)
            found(keys[place], verdict)

        try:
            self._judge.judge(comparisons, keep, budget)
        finally:
            self._cache.release(keys)

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """Of what is not known yet."""
        settings = self.settings
        by_key = {verdict_key(settings, comparison): comparison for comparison in comparisons}
        known = self._cache.known(list(by_key))
        return self._judge.estimate([comparison for key, comparison in by_key.items() if key not in known])


def verdict_key(settings: Mapping[str, str], comparison: Comparison) -> str:
    """Hash of everything that can change a verdict: the judge's settings, and both texts in the order they are read."""
    texts = [comparison.prompt, comparison.sample, comparison.opponent, comparison.reference]
    return hashlib.sha256(json.dumps([dict(sorted(settings.items())), texts]).encode()).hexdigest()
