"""The command judge: completions in, verdicts, metrics and judged files out, and nothing asked twice."""

import json
import logging
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from judge_endpoint import MODEL, Behaviour, judge_served
from judged_texts import made_up, truth
from overopt.cli import main
from overopt.evaluation.judges.verdict_cache import VerdictCache
from overopt.tracking.runs import start_run
from overopt.tracking.store import EXPERIMENT, open_store

KEY = "sk-secret-0123456789"
PROJECT = Path(__file__).parents[1]
ROWS = [made_up(number) for number in range(30)]
WINS = sum(truth(row) == "win" for row in ROWS)


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
    open_store(uri, create=True)
    return uri


@pytest.fixture
def client(store_uri):
    return open_store(store_uri, create=False)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, store_uri):
    monkeypatch.chdir(PROJECT)  # where conf/ is
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    monkeypatch.setenv("OVEROPT_JUDGE_API_KEY", KEY)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # a handler may keep a stream that pytest has closed


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def completions(tmp_path) -> Path:
    return write(tmp_path / "evaluation" / "examples-00000256.jsonl", [row | {"token_ids": [1, 2]} for row in ROWS])


@pytest.fixture
def prices(tmp_path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(f"currency: EUR\nbatch_factor: 0.5\nmodels: {{{MODEL}: {{input: 1000.0, output: 3000.0}}}}\n")
    return path


def api(served, prices="null") -> list[str]:
    return ["--judge", "api", "--judge.model", MODEL, "--judge.base_url", served.url, "--judge.prices", str(prices)]


@pytest.fixture
def judge(tmp_path, capfd):
    """Runs the command; what it printed."""

    def run(completions, *options) -> str:
        capfd.readouterr()
        main(["judge", str(completions), "--cache", str(tmp_path / "verdicts.db"), *map(str, options)])
        return capfd.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs the command, which must be refused with one line; the line."""

    def run(*arguments) -> str:
        with pytest.raises(SystemExit) as end:
            main(["judge", "--cache", str(tmp_path / "verdicts.db"), *map(str, arguments)])
        errors = capfd.readouterr().err
        assert end.value.code == 2, errors
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def runs(client):
    found = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([found.experiment_id]) if found else []


@contextmanager
def one_new_run(client):
    before = {run.info.run_id for run in runs(client)}
    new = []
    yield new
    new += [run for run in runs(client) if run.info.run_id not in before]
    assert len(new) == 1


def test_a_file_of_completions_is_judged_tracked_and_not_asked_again(completions, judge, client, tmp_path, prices):
    with judge_served() as served:
        with one_new_run(client) as new:
            printed = judge(completions, *api(served, prices))
        assert len(served.entries) == 30
        [run] = new
        again = judge(completions, *api(served, prices))
        assert len(served.entries) == 30
    judged = rows_of(completions.parent / "judged" / completions.name)
    assert [row["verdict"] for row in judged] == [truth(row) for row in ROWS]
    assert [row["win_probability"] for row in judged] == [float(truth(row) == "win") for row in ROWS]
    for row, before in zip(judged, rows_of(completions), strict=True):
        assert {name: row[name] for name in before} == before
        assert row["judge_model"] == MODEL
        assert row["judge_answer"]
        assert row["judge_input_tokens"] > row["judge_output_tokens"] > 0
        assert row["judge_cost"] == pytest.approx(
            (row["judge_input_tokens"] * 1000 + row["judge_output_tokens"] * 3000) / 1e6
        )
        assert row["first_preferred"] in (0.0, 1.0)
    assert {row["first_preferred"] == row["win_probability"] for row in judged} == {True, False}  # both orders occur
    assert f"win rate {WINS / 30:.3f}" in printed
    assert "30 questions to ask" in printed
    assert run.data.tags["overopt.stage"] == "judge"
    assert run.data.tags["overopt.judge"] == run.data.params["judge"] == MODEL
    assert run.data.tags["overopt.judge_endpoint"] == served.url
    assert run.data.tags["overopt.judge_order"] == "seeded 0"
    assert run.data.metrics["eval/win_rate"] == pytest.approx(WINS / 30)
    assert run.data.metrics["eval/judge_cost"] == pytest.approx(sum(row["judge_cost"] for row in judged))
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "eval/win_rate")] == [256, 256]
    assert run.info.status == "FINISHED"
    kept = Path(client.download_artifacts(run.info.run_id, f"judged/{completions.name}", str(tmp_path)))
    assert rows_of(kept) == judged
    # The second command asked nothing, went on in the same run and says the same.
    assert "questions to ask" not in again
    assert run.info.run_id in printed
    assert run.info.run_id in again
    assert f"win rate {WINS / 30:.3f}" in again


def test_a_folder_is_judged_file_by_file_into_the_folder_named(tmp_path, judge, client):
    for number, part in ((256, ROWS[:10]), (512, ROWS[10:])):
        write(tmp_path / "evaluation" / f"examples-{number:08d}.jsonl", part)
    with judge_served() as served, one_new_run(client) as new:
        judge(tmp_path / "evaluation", "--out", tmp_path / "out", *api(served))
    for number, part in ((256, ROWS[:10]), (512, ROWS[10:])):
        judged = rows_of(tmp_path / "out" / f"examples-{number:08d}.jsonl")
        assert [row["verdict"] for row in judged] == [truth(row) for row in part]
    assert not (tmp_path / "evaluation" / "judged").exists()
    history = client.get_metric_history(new[0].info.run_id, "eval/win_rate")
    expected = {
        256: sum(truth(row) == "win" for row in ROWS[:10]) / 10,
        512: sum(truth(row) == "win" for row in ROWS[10:]) / 20,
    }
    assert {metric.step: metric.value for metric in history} == pytest.approx(expected)


def test_a_run_that_is_named_gets_the_metrics_and_keeps_its_status(completions, judge, client):
    run_id = start_run(client, "aligned", "align")
    client.set_terminated(run_id, "KILLED")
    before = len(runs(client))
    with judge_served() as served:
        judge(completions, "--run-id", run_id, *api(served))
    run = client.get_run(run_id)
    assert len(runs(client)) == before
    assert run.info.status == "KILLED"
    assert run.data.tags["overopt.stage"] == "align"
    assert run.data.tags["overopt.judge"] == MODEL
    assert {m.step: m.value for m in client.get_metric_history(run_id, "eval/win_rate")} == {
        256: pytest.approx(WINS / 30)
    }
    assert [file.path for file in client.list_artifacts(run_id, "judged")] == [f"judged/{completions.name}"]


def test_a_judge_that_fails_leaves_the_tags_of_a_named_run_alone(completions, refused, client):
    run_id = start_run(client, "aligned", "align", tags={"overopt.judge": "gold"})
    client.set_terminated(run_id, "FINISHED")
    with judge_served(Behaviour(key="another")) as served:
        assert "401" in refused(completions, "--run-id", run_id, *api(served))
    run = client.get_run(run_id)
    assert (run.data.tags["overopt.judge"], run.info.status) == ("gold", "FINISHED")


def test_an_estimate_asks_nothing_and_tracks_nothing(completions, judge, client, prices):
    before = len(runs(client))
    with judge_served() as served:
        printed = judge(completions, "--estimate-only", *api(served, prices))
    assert "30 comparisons: 30 questions to ask, about" in printed
    assert "EUR" in printed
    assert served.entries == []
    assert len(runs(client)) == before
    assert not (completions.parent / "judged").exists()


def test_both_orders_are_asked_and_a_judge_without_bias_shows_none(completions, judge, client):
    with judge_served() as served, one_new_run(client) as new:
        judge(completions, "--order", "both", *api(served))
    assert len(served.entries) == len({entry["question"] for entry in served.entries}) == 60
    judged = rows_of(completions.parent / "judged" / completions.name)
    assert [row["verdict"] for row in judged] == [truth(row) for row in ROWS]
    assert {row["first_preferred"] for row in judged} == {0.5}
    assert all("[sample first]" in row["judge_answer"] and "[sample second]" in row["judge_answer"] for row in judged)
    assert new[0].data.metrics["eval/position_bias"] == 0
    assert new[0].data.tags["overopt.judge_order"] == "both"


def test_a_cost_limit_stops_cleanly_and_a_higher_one_goes_on(completions, judge, refused, client, prices, tmp_path):
    with judge_served(Behaviour(latency=0.01)) as served:
        with one_new_run(client) as new:
            last = refused(completions, "--max-cost", "4", *api(served, prices))
        assert new[0].info.status == "FAILED"
        with VerdictCacheOf(tmp_path / "verdicts.db") as kept:
            assert 0 < len(kept) == len(served.entries) < 30
            spent = sum(verdict["cost"] for verdict in kept)
        assert 2 < spent <= 4
        assert "of --max-cost 4 are spent" in last
        assert f"{len(kept)} of 30 comparisons are judged and kept in" in last
        assert "start the same command again with a higher --max-cost to go on" in last
        assert not (completions.parent / "judged").exists()
        # The same limit again asks nothing more, since what is known counts.
        refused(completions, "--max-cost", "4", *api(served, prices))
        assert len(served.entries) == len(kept)
        judge(completions, "--max-cost", "100", *api(served, prices))
        assert len(served.entries) == 30
    [run] = [run for run in runs(client) if run.info.run_id == new[0].info.run_id]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/win_rate"] == pytest.approx(WINS / 30)


class VerdictCacheOf:
    """The verdicts in a cache file."""

    def __init__(self, path: Path) -> None:
        self._cache = VerdictCache(path)

    def __enter__(self) -> list[dict]:
        rows = self._cache._database.execute("SELECT verdict FROM verdicts").fetchall()
        return [json.loads(verdict) for (verdict,) in rows]

    def __exit__(self, *_: object) -> None:
        self._cache._database.close()


def test_faults_on_the_way_change_no_verdict(completions, judge):
    kinds = ["429", "500", "503", "cut before", "cut within", "invalid JSON", "no choices", "error with 200"]
    with judge_served(Behaviour(faults=0.3, kinds=kinds, seed=3)) as served:
        judge(completions, "--judge.max_attempts", "20", *api(served))
    assert any(entry["answer"] in kinds for entry in served.entries)
    judged = rows_of(completions.parent / "judged" / completions.name)
    assert [row["verdict"] for row in judged] == [truth(row) for row in ROWS]


def test_the_longer_text_wins_without_a_network(completions, judge, client):
    with one_new_run(client) as new:
        judge(completions, "--judge", "longer")
    judged = rows_of(completions.parent / "judged" / completions.name)
    lengths = [(len(row["response"].split()), len(row["opponent"].split())) for row in ROWS]
    assert [row["win_probability"] for row in judged] == [float(a > b) + 0.5 * (a == b) for a, b in lengths]
    assert new[0].data.tags["overopt.judge"] == "longer text, in words"
    assert "eval/position_bias" not in new[0].data.metrics
    assert "eval/judge_cost" not in new[0].data.metrics


def test_rouge_holds_both_texts_against_a_reference(tmp_path, judge, refused, client):
    path = write(tmp_path / "c.jsonl", [ROWS[0] | {"reference": ROWS[0]["response"]}])
    judge(path, "--judge", "rouge")
    assert rows_of(tmp_path / "judged" / "c.jsonl")[0]["verdict"] == "win"
    before = len(runs(client))
    assert "has no reference" in refused(write(tmp_path / "d.jsonl", ROWS), "--judge", "rouge")
    assert len(runs(client)) == before


def test_a_gold_reward_model_judges_and_its_rewards_are_kept(tmp_path, preference_folder, sft_checkpoint, judge):
    reward = ["--model", "overopt.modules.reward_modeling.RewardModule", "--model.policy", str(sft_checkpoint)]
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--data.cache_dir", str(tmp_path / "c")]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
    main(["fit", *reward, *data, *quiet, "--trainer.logger", "false", "--checkpoints.folder", str(tmp_path / "reward")])
    pairs = rows_of(preference_folder / "pairs.jsonl")[:8]
    rows = [
        {"prompt_id": p["id"], "prompt": p["prompt"], "response": p["chosen"], "opponent": p["rejected"]} for p in pairs
    ]
    path = write(tmp_path / "completions" / "c.jsonl", rows)
    judge(path, "--judge", "gold", "--judge.checkpoint", tmp_path / "reward" / "last.ckpt")
    judged = rows_of(path.parent / "judged" / "c.jsonl")
    assert {row["verdict"] for row in judged} <= {"graded", "tie"}
    assert all(isinstance(row["gold_reward"], float) and 0 < row["win_probability"] < 1 for row in judged)


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "good.jsonl", ROWS[:3])
    write(tmp_path / "examples-00000256.jsonl", ROWS[:3])
    write(tmp_path / "no_opponent.jsonl", [ROWS[0], {**ROWS[1], "opponent": None}])
    write(tmp_path / "odd_reference.jsonl", [ROWS[0] | {"reference": 5}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "malformed.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"prompt": \n')
    (tmp_path / "no_rows").mkdir()
    old = VerdictCache(tmp_path / "old.db")
    old._database.execute("PRAGMA user_version = 7")
    old._database.execute("PRAGMA journal_mode = DELETE")
    old._database.close()
    return tmp_path


THERE = ["--judge.base_url"]
BAD_INPUT = {
    "no key": (["good.jsonl", "--judge", "api", "--judge.model", "gpt-4o-2024-08-06"], "variable OPENAI_API_KEY"),
    "completions without opponents": (["no_opponent.jsonl", "--judge", "longer"], "no_opponent.jsonl, line 2: no oppo"),
    "a reference that is no text": (["odd_reference.jsonl", "--judge", "longer"], "line 1: the reference is no text"),
    "empty file": (["empty.jsonl", "--judge", "longer"], "empty.jsonl is empty"),
    "malformed line": (["malformed.jsonl", "--judge", "longer"], "malformed.jsonl, line 2"),
    "missing file": (["gone.jsonl", "--judge", "longer"], "no completions at"),
    "folder without completions": (["no_rows", "--judge", "longer"], "no completions in"),
    "a cache of another version": (["good.jsonl", "--judge", "longer", "--cache", "old.db"], "version 7, this overopt"),
    "a cache that is none": (["good.jsonl", "--judge", "longer", "--cache", "good.jsonl"], "is no verdict cache"),
    "store out of reach": (["good.jsonl", "--judge", "longer", "--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
    "no judge": (["good.jsonl"], "name a judge with --judge: api, gold"),
    "no judge to an option": (["good.jsonl", "--judge.model", "m"], "--judge.model is an option of a judge: name it"),
    "unknown judge": (["good.jsonl", "--judge", "oracle"], "no judge 'oracle'; there are api, gold"),
    "unknown run": (["examples-00000256.jsonl", "--judge", "longer", "--run-id", "0" * 32], "not give run 0000"),
    "a run at no examples seen": (
        ["good.jsonl", "--judge", "longer", "--run-id", "0" * 32],
        "good.jsonl does not say at which examples seen",
    ),
    "judged onto themselves": (["good.jsonl", "--judge", "longer", "--out", "."], "would be overwritten"),
    "negative limit": (["good.jsonl", "--judge", "longer", "--max-cost", "-1"], "cost limit of at least 0, got -1"),
    "no price for a limit": (
        ["good.jsonl", "--judge", "api", "--judge.model", "m", *THERE, "http://127.0.0.1:9/v1", "--max-cost", "1"],
        "no price of m in conf/judge/prices.yaml",
    ),
    "credentials in the URL": (
        ["good.jsonl", "--judge", "api", "--judge.model", "m", *THERE, "http://me:hunter2@127.0.0.1:9/v1"],
        "give the key in an environment variable",
    ),
    "no template": (
        ["good.jsonl", "--judge", "api", "--judge.model", "m", "--judge.template", "x"],
        "no question at x",
    ),
}


@pytest.mark.parametrize(("arguments", "named"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_with_one_line_and_leaves_nothing(arguments, named, folder, refused, client, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    runs_before = len(runs(client))
    files = {path.name for path in folder.iterdir()}
    last = refused(*(str(folder / word) if word in {*files, "gone.jsonl", "."} else word for word in arguments))
    assert named in last
    assert "hunter2" not in last
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert len(runs(client)) == runs_before


def test_an_unknown_model_is_one_line_and_leaves_no_verdict(completions, refused, tmp_path):
    with judge_served() as served:
        last = refused(completions, *api(served), "--judge.model", "judge-9")
    assert "answered 404 (The model `judge-9` does not exist" in last
    assert "check --judge.model" in last
    assert not (completions.parent / "judged").exists()
    with VerdictCacheOf(tmp_path / "verdicts.db") as kept:
        assert kept == []


def test_what_is_known_is_judged_without_a_key(completions, judge, refused, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    with judge_served() as served:
        judge(completions, *api(served), "--judge.key_variable", "MINE")
        monkeypatch.delenv("MINE")
        assert "win rate" in judge(completions, *api(served), "--judge.key_variable", "MINE")
        write(completions, [*ROWS, made_up(30)])
        assert "variable MINE" in refused(completions, *api(served), "--judge.key_variable", "MINE")
    assert len(served.entries) == 30


def batches_of(served):
    with openai.OpenAI(base_url=served.url, api_key=KEY) as client:
        return list(client.batches.list(limit=100))


def test_a_command_killed_while_its_batch_is_under_way_goes_on_and_asks_nothing_twice(completions, tmp_path):
    batch = ["--judge.mode", "batch", "--judge.poll_seconds", "0.05"]
    with judge_served(Behaviour(batch_delay=1.5)) as served:
        command = [sys.executable, "-m", "overopt", "judge", str(completions), "--cache", str(tmp_path / "verdicts.db")]
        command += [*api(served), *batch]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
            while not batches_of(served):
                assert first.poll() is None
                time.sleep(0.02)
            first.kill()
        assert served.entries == []
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert len(batches_of(served)) == 1
    assert len(served.entries) == len({entry["case"] for entry in served.entries}) == 30
    judged = rows_of(completions.parent / "judged" / completions.name)
    assert [row["verdict"] for row in judged] == [truth(row) for row in ROWS]


def holds(folder: Path, word: str) -> list[Path]:
    """Files that hold a word anywhere in their bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


NASTY = {
    "faults": Behaviour(faults=0.4, kinds=["429", "500", "503", "invalid JSON", "no choices"], echo_key=True),
    "wrong key": Behaviour(key="another", echo_key=True),
    "batch": Behaviour(batch_line_faults=0.3, batch_delay=0.1, echo_key=True),
}


@pytest.mark.parametrize("kind", NASTY)
def test_the_key_is_in_nothing_that_is_written_or_printed(kind, completions, tmp_path, store_uri):
    environment = os.environ | {"OPENAI_LOG": "debug", "OVEROPT_TRACEBACK": "1", "MLFLOW_TRACKING_URI": store_uri}
    environment["OVEROPT_JUDGE_API_KEY"] = KEY
    mode = ["--judge.mode", "batch", "--judge.poll_seconds", "0.05"] if kind == "batch" else []
    attempts = ["--judge.max_attempts", "20"]
    command = [sys.executable, "-m", "overopt", "judge", str(completions), "--cache", str(tmp_path / "verdicts.db")]
    with judge_served(NASTY[kind]) as served:
        command += [*api(served), *mode, *attempts]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        asked = len(served.entries)
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) == (kind in ("faults", "batch")), printed[-3000:]
    assert "Traceback" in printed or done.returncode == 0
    assert "HTTP Request" in printed  # the client did log
    assert asked > 0 or kind == "wrong key"
    store = Path(store_uri.removeprefix("sqlite:///")).parent
    assert KEY not in printed
    assert holds(tmp_path, KEY) == holds(store, KEY) == []
    # The search does find what is there.
    assert holds(tmp_path, "case 000007")
    assert holds(store, served.url)


ALIGN = ["--model", "overopt.modules.direct_alignment.DirectAlignmentModule", "--trainer.max_steps", "1"]


def test_evaluate_judges_a_checkpoint_by_an_endpoint_and_asks_nothing_the_second_time(
    tmp_path, preference_folder, sft_checkpoint, store_uri, client
):
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--data.cache_dir", str(tmp_path / "c")]
    data += ["--data.max_prompt_tokens", "48", "--data.max_response_tokens", "24", "--data.evaluation_fraction", "0.3"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
    tracked = ["--trainer.logger.tracking_uri", store_uri, "--checkpoints.folder", str(tmp_path / "checkpoints")]
    main(["fit", *ALIGN, "--model.reference", str(sft_checkpoint), *data, *quiet, *tracked])
    checkpoint = str(tmp_path / "checkpoints" / "last.ckpt")
    with judge_served() as served:
        command = ["evaluate", checkpoint, "--num-prompts", "6", "--out", str(tmp_path / "evaluation"), *api(served)]
        command += ["--cache", str(tmp_path / "verdicts.db")]
        main(command)
        asked = len(served.entries)
        first = {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()}
        main(command)
        assert len(served.entries) == asked
    assert 6 <= asked <= 12  # of the reference and the policy; equal samples are asked once
    assert {path.name: path.read_bytes() for path in (tmp_path / "evaluation").iterdir()} == first
    judged = [row for path in (tmp_path / "evaluation").iterdir() for row in rows_of(path)]
    # The server knows no worth of these texts, and says so.
    assert len(judged) == 12
    assert {row["verdict"] for row in judged} == {"unreadable"}
    assert all("who am I to say" in row["judge_answer"] for row in judged)
    [run] = [run for run in runs(client) if run.data.tags.get("overopt.judge_endpoint") == served.url]
    assert run.data.tags["overopt.stage"] == "align"
    assert run.data.metrics["eval/unreadable_share"] == 1


def test_evaluate_misses_a_key_before_it_samples(tmp_path, sft_checkpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    from overopt.evaluation.judges.api import ApiJudge
    from overopt.judging import Judging

    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Judging(ApiJudge("gpt-4o-2024-08-06"), "seeded", 0, tmp_path / "verdicts.db").require()
    assert not (tmp_path / "verdicts.db").exists()
