"""Whether judging loses, invents or repeats verdicts, how fast it is and what memory it takes, over real HTTP.

    python benchmarks/judging.py

Made-up comparisons whose truth is in their texts are judged by ``overopt judge`` as a process of its own, against the
server of tests/judge_endpoint.py on loopback:

1. Half of all calls go wrong, in every way that the server knows. Judging is stopped with SIGKILL at random moments
   while it makes progress, and started again with the same command until it is done. The server's log says what was
   asked and what was answered.
2. No faults, 0.5 s an answer, 64 at a time: verdicts a second as the server saw them, and the resident set of the
   judging process.

The last line has the figures, and whether every bar holds; the exit code is 1 if one does not.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tables import machine, write_table

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
sys.path.insert(0, str(TESTS))
from judge_endpoint import GRACE, MODEL  # noqa: E402
from judged_texts import made_up, truth  # noqa: E402

KEY = "sk-trial-7f3a9c51e2"
MAX_CONCURRENT = 64
MAX_ATTEMPTS = 8
TIMEOUT = 2.0  # of a request [s]
LATENCY = 0.5  # of the measurement of throughput [s]
#: Of the server at its worst: long enough for all slots to be taken. [s]
FAULTY_LATENCY = 0.25
UNREADABLE = REFUSED = 0.01
MOST_SITTINGS = 20
#: A trial without news from the server for so long has got stuck. [s]
PATIENCE = 120.0

LEAST_THROUGHPUT = 0.8  # of what latency and concurrency allow
MOST_GROWTH = 20.0  # [MB]


class Check(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    bar: str
    holds: bool


@dataclass
class Sitting:
    """One run of the command.

    Attributes:
        begin: when it was started [s since the epoch].
        end: when it had ended.
        code: exit code; -9 where it was killed.
        memory: share of comparisons with an answer -> resident set of the process [MB].
    """

    begin: float
    end: float = float("inf")
    code: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


class Log:
    """The server's log, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.entries: list[dict[str, Any]] = []
        self.answered: set[str] = set()
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> None:
        """Take in what is new."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            entry = json.loads(line)
            self.entries.append(entry)
            if entry["delivered"]:
                self.answered.add(entry["case"])


def main() -> int:
    """Try, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the faults, and of the moments of the kills")
    parser.add_argument("--faults-only", action="store_true", help="leave out throughput and memory")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--keep", type=Path, help="folder for everything that is written on the way; it goes otherwise")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="judging-"))
    faulty, sittings = misbehaving(folder / "faulty", arguments.comparisons, arguments.kills, arguments.seed)
    swift = [] if arguments.faults_only else undisturbed(folder / "swift", arguments.comparisons)
    if not arguments.keep:
        shutil.rmtree(folder)  # a trial that broke off leaves it, to be looked at
    checks = [*faulty, *swift]
    rows = [
        {"what": c.what, "found": c.found, "bar": c.bar, "holds": {True: "yes", False: "NO"}[c.holds]} for c in checks
    ]
    notes = [
        f"{arguments.comparisons:,} made-up comparisons, {MAX_CONCURRENT} at a time, {MAX_ATTEMPTS} attempts, time-out "
        f"{TIMEOUT:g} s; {UNREADABLE:.0%} of answers unreadable, {REFUSED:.0%} refused",
        f"sittings: {sittings}",
        "throughput and memory: no faults, 0.5 s an answer; server and judge on one machine",
        f"`python benchmarks/judging.py --comparisons {arguments.comparisons} --kills {arguments.kills} "
        f"--seed {arguments.seed}`",
        *machine(("openai", "mlflow")),
    ]
    write_table(arguments.out / "judging.md", "Judging by a server that misbehaves", rows, notes)
    broken = [check.what for check in checks if not check.holds]
    figures = "; ".join(f"{check.what}: {check.found}" for check in checks)
    print(f"{figures}: {'BROKEN: ' + ', '.join(broken) if broken else 'every bar holds'}")
    return 1 if broken else 0


def misbehaving(folder: Path, number: int, kills: int, seed: int) -> tuple[list[Check], str]:
    """Judge against the server at its worst, killed on the way.

    Args:
        folder: everything is written there, by us and by the command.
        number: of comparisons.
        kills: of the judging process.
        seed: of faults and kills.

    Returns:
        What must hold, and how the sittings ended.
    """
    rows = write_completions(folder, number)
    moments = iter(sorted(random.Random(seed).uniform(0.05, 0.9) for _ in range(kills)))
    worst = ["--faults", "0.5", "--latency", str(FAULTY_LATENCY), "--echo_key", "true", "--seed", str(seed)]
    worst += ["--unreadable", str(UNREADABLE), "--refused", str(REFUSED)]
    sittings: list[Sitting] = []
    moment = next(moments, None)
    with server(folder, worst) as url:
        log = Log(folder / "server.jsonl")
        while not sittings or sittings[-1].code != 0:
            if len(sittings) == MOST_SITTINGS:
                raise SystemExit(f"not done after {MOST_SITTINGS} sittings: {last_words(folder)}")
            at = moment
            sitting = sit(folder, url, log, number, stop=lambda share, at=at: at is not None and share >= at)
            sittings.append(sitting)
            if sitting.code == -signal.SIGKILL:
                moment = next(moments, None)
            elif sitting.code not in (0, 2):
                raise SystemExit(f"the judge ended with exit code {sitting.code}: {last_words(folder)}")
        log.read()
    ended = Counter(sitting.code for sitting in sittings)
    minutes = (sittings[-1].end - sittings[0].begin) / 60
    how = (
        f"{len(sittings)} in {minutes:.1f} min: {ended[-signal.SIGKILL]} killed, {ended[2]} ended with exit code 2 "
        f"(comparisons without an answer in {MAX_ATTEMPTS} attempts), {ended[0]} with 0"
    )
    kinds = Counter(entry["answer"] for entry in log.entries)
    faults = sum(count for kind, count in kinds.items() if kind not in ("good", "unreadable", "refused"))
    checks = [
        Check("SIGKILLs on the way", str(ended[-signal.SIGKILL]), str(kills), ended[-signal.SIGKILL] == kills),
        Check("calls that went wrong", f"{faults / len(log.entries):.1%} of {len(log.entries):,}", "", True),
        *verdicts_hold(folder, rows, log),
        *asking_holds(log, sittings, kills),
        key_is_nowhere(folder),
    ]
    return checks, how


def verdicts_hold(folder: Path, rows: Sequence[dict[str, str]], log: Log) -> Iterator[Check]:
    """Every comparison has one verdict, the true one, and the server said so."""
    judged = [
        json.loads(line) for line in (folder / "judged" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    times = Counter(row["prompt_id"] for row in judged)
    once = sum(times[row["prompt_id"]] == 1 for row in rows)
    yield Check("with exactly one verdict", f"{once:,}", f"{len(rows):,}", once == len(rows) == len(judged))
    truths = {row["prompt_id"]: truth(row, unreadable=UNREADABLE, refused=REFUSED) for row in rows}
    true = sum(row["verdict"] == truths.get(row["prompt_id"]) for row in judged)
    yield Check("with the true verdict", f"{true:,}", f"{len(rows):,}", true == len(rows))
    graded = {"win": 1.0, "loss": 0.0}
    wrong = sum(row["win_probability"] != graded.get(row["verdict"]) for row in judged)
    yield Check("win probability other than the verdict", str(wrong), "0", wrong == 0)
    said = {(f"case {entry['case']}", entry["text"]) for entry in log.entries if entry["delivered"]}
    invented = sum((row["prompt_id"], row["judge_answer"]) not in said for row in judged)
    yield Check("with an answer that was never sent", str(invented), "0", invented == 0)


def asking_holds(log: Log, sittings: Sequence[Sitting], kills: int) -> Iterator[Check]:
    """No comparison is asked too often, or again without need, or while a pause is in force."""
    begins = [sitting.begin for sitting in sittings] + [float("inf")]
    by_sitting = [
        [entry for entry in log.entries if begin <= entry["received"] < end] for begin, end in pairwise(begins)
    ]
    most = max(max(Counter(entry["question"] for entry in entries).values(), default=0) for entries in by_sitting)
    yield Check("most attempts at one comparison in a sitting", str(most), f"<= {MAX_ATTEMPTS}", most <= MAX_ATTEMPTS)
    delivered: dict[str, float] = {}
    for entry in log.entries:
        if entry["delivered"]:
            delivered[entry["question"]] = min(entry["ended"], delivered.get(entry["question"], float("inf")))
    again = [
        sum(entry["received"] > delivered.get(entry["question"], float("inf")) for entry in entries)
        for entries in by_sitting
    ]
    # A sitting pays for the kill of the one before it: answers that had reached the process, but not its cache.
    after_kill = [count for count, before in zip(again[1:], sittings, strict=False) if before.code == -signal.SIGKILL]
    others = sum(again) - sum(after_kill)
    worst = max(after_kill, default=0)
    bar = f"<= {MAX_CONCURRENT} a kill"
    yield Check(
        "asked again though answered, after a kill", f"{sum(after_kill)} (most: {worst})", bar, worst <= MAX_CONCURRENT
    )
    yield Check("asked again though answered, without a kill", str(others), "0", others == 0)
    # The pauses that a killed process was told of are nothing that the next one knows.
    early = [
        entry["received"] - entry["early"]
        for sitting, entries in zip(sittings, by_sitting, strict=True)
        for entry in entries
        if entry["early"] is not None and entry["early"] >= sitting.begin
    ]
    pauses = sum(entry["answer"].startswith("429 ") for entry in log.entries)
    found = f"{len(early)} in {pauses} pauses" + (f", {max(early) * 1000:.0f} ms at most" if early else "")
    # Some are inevitable: they were being sent while the word was being read, and two cores are shared with the server.
    allowed = len(log.entries) // 1000
    what = f"asked over {GRACE * 1000:.0f} ms into a pause (Retry-After)"
    yield Check(what, found, f"<= {allowed:,}, 0.1% of calls", len(early) <= allowed)


def key_is_nowhere(folder: Path) -> Check:
    """The key is in no file that was written; that the search works is shown on a file that has it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    control = folder / "control"
    control.write_text(f"error: {KEY}")
    found = [path.relative_to(folder).as_posix() for path in [*files, control] if KEY.encode() in path.read_bytes()]
    others = [name for name in found if name != "control"]
    holds = found == ["control"]
    return Check("files with the key", f"{', '.join(others) or 0} of {len(files)}", "0", holds)


def undisturbed(folder: Path, number: int) -> list[Check]:
    """Throughput and memory against an honest server that takes 0.5 s an answer."""
    write_completions(folder, number)
    with server(folder, ["--latency", str(LATENCY)]) as url:
        log = Log(folder / "server.jsonl")
        sitting = sit(folder, url, log, number)
        log.read()
        most: int = json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/counts").read())["most_under_way"]
    if sitting.code:
        raise SystemExit(f"the judge ended with exit code {sitting.code}: {last_words(folder)}")
    seconds = max(entry["ended"] for entry in log.entries) - min(entry["received"] for entry in log.entries)
    rate, allowed = len(log.answered) / seconds, MAX_CONCURRENT / LATENCY
    growth, at_fifth = memory_growth(sitting.memory)
    return [
        # Here, where it is exact: of a client that gave up waiting, the server learns later than of its next request.
        Check("most at a time", str(most), f"<= {MAX_CONCURRENT}", most <= MAX_CONCURRENT),
        Check(
            "verdicts a second",
            f"{rate:.1f} ({rate / allowed:.0%} of {allowed:.0f})",
            f">= {LEAST_THROUGHPUT:.0%}",
            rate >= LEAST_THROUGHPUT * allowed,
        ),
        Check(
            "resident set from 20% to 100% of the way",
            f"{growth:+.1f} MB, from {at_fifth:.0f} MB",
            f"< {MOST_GROWTH:g} MB",
            growth < MOST_GROWTH,
        ),
    ]


def memory_growth(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How much more the process held at its most after 20% of the way than at 20% [MB], and what it held there.

    >>> memory_growth([(0.1, 90.0), (0.2, 100.0), (0.6, 108.0), (1.0, 104.0)])
    (8.0, 100.0)
    """
    late = [megabytes for share, megabytes in samples if share >= 0.2]
    return (max(late) - late[0], late[0]) if late else (float("nan"), float("nan"))


def sit(folder: Path, url: str, log: Log, number: int, stop: Callable[[float], bool] = lambda _: False) -> Sitting:
    """Run the command until it ends, or kill it.

    Args:
        folder: where it runs and writes.
        url: of the server.
        log: of the server.
        number: of comparisons.
        stop: whether to kill it, given the share of comparisons that the server has answered.
    """
    options = {
        "--judge": "api",
        "--judge.model": MODEL,
        "--judge.base_url": url,
        "--judge.max_concurrent": str(MAX_CONCURRENT),
        "--judge.timeout": str(TIMEOUT),
        "--judge.max_attempts": str(MAX_ATTEMPTS),
        "--judge.answers": "structured",
        "--cache": "cache.db",
        "--judge.template": str(HERE.parent / "conf" / "judge" / "concise.txt"),
        "--judge.prices": "null",
        "--order": "seeded",
        "--seed": "0",
        "--tracking-uri": "sqlite:///mlflow.db",
    }
    command = [
        sys.executable,
        "-m",
        "overopt",
        "judge",
        "completions.jsonl",
        *(word for option in options.items() for word in option),
    ]
    source = str(HERE.parent / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OVEROPT_JUDGE_API_KEY": KEY}
    sitting = Sitting(time.time())
    news, heard = len(log.entries), time.monotonic()
    with (
        (folder / "judge.out").open("ab") as out,
        (folder / "judge.err").open("ab") as err,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err) as process,
    ):
        try:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                time.sleep(0.05)
                log.read()
                share = len(log.answered) / number
                try:
                    sitting.memory.append((share, watched.memory_info().rss / 1e6))
                except psutil.NoSuchProcess:
                    continue
                if stop(share):
                    process.send_signal(signal.SIGKILL)
                if len(log.entries) > news:
                    news, heard = len(log.entries), time.monotonic()
                elif time.monotonic() - heard > PATIENCE:
                    raise SystemExit(f"no request for {PATIENCE:g} s: {last_words(folder)}")
        finally:
            process.kill()
    sitting.code, sitting.end = process.returncode, time.time()
    # Requests that the process had sent are still with the server.
    time.sleep(0.5)
    log.read()
    return sitting


def last_words(folder: Path) -> str:
    """The end of what the judging process and the server said, and where all is."""
    said = [
        (folder / name).read_text(encoding="utf-8", errors="replace")[-1000:] for name in ("judge.err", "server.err")
    ]
    return "\n".join([*said, f"in {folder}"])


@contextmanager
def server(folder: Path, options: Sequence[str]) -> Iterator[str]:
    """The base URL of a judge's endpoint in a process of its own; its log is server.jsonl."""
    command = [sys.executable, str(TESTS / "judge_endpoint.py"), "--key", KEY, "--log", str(folder / "server.jsonl")]
    with (
        (folder / "server.err").open("w") as err,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
            if process.poll() is not None:
                raise SystemExit(f"the server ended with exit code {process.returncode}: {last_words(folder)}")
        finally:
            process.kill()


def write_completions(folder: Path, number: int) -> list[dict[str, str]]:
    """Write the rows to judge; they come back, too."""
    folder.mkdir(parents=True)
    rows = [made_up(place) for place in range(number)]
    with (folder / "completions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


if __name__ == "__main__":
    sys.exit(main())
