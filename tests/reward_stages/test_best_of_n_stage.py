import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from overopt.analysis.figures.best_of_n import best_of_n
from overopt.cli import main
from overopt.evaluation.best_of_n import kl_bound
from overopt.evaluation.judges.gold_reward import gold_reward_judge
from overopt.evaluation.records import Comparison, read_completions
from overopt.evaluation.text_rewards import open_text_rewards
from overopt.models.policy import load_policy
from overopt.packed_tokens import PromptGroup, pack
from overopt.tracking.best_of_n_points import read_best_of_n
from overopt.tracking.store import open_store
from overopt.tracking.tables import read_points

POOL, PROMPTS = 6, 8
SMALL = ["--pool", str(POOL), "--ns", "1", "2", "6", "--num-prompts", str(PROMPTS)]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, store, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def done(reward_checkpoints, sft_checkpoint, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("best_of_n")
    proxy, _, gold = reward_checkpoints
    options = ["--reward", str(proxy), "--gold", str(gold), "--gold-temperature", "0.5", "--tracking-uri", store]
    main(["best-of-n", str(sft_checkpoint), *options, *SMALL, "--out", str(out)])
    return out


def rows_of(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def test_each_row_is_the_mean_over_all_subsets_of_the_pool(done):
    table = pd.read_csv(done / "best_of_n.csv").set_index("n")
    rows = pd.DataFrame(rows_of(done))
    assert rows.groupby("prompt_id").size().tolist() == [POOL] * PROMPTS
    for n in (1, 2, 6):
        for column, name in (
            ("proxy_reward", "proxy_reward"),
            ("gold_reward", "gold_reward"),
            ("win_rate", "win_probability"),
            ("response_tokens", "response_tokens"),
        ):
            of_prompts = []
            for _, pool in rows.groupby("prompt_id"):
                proxy, values = pool["proxy_reward"].to_numpy(), pool[name].to_numpy(float)
                chosen = [
                    values[subset][proxy[subset] == proxy[subset].max()].mean()
                    for subset in map(list, itertools.combinations(range(POOL), n))
                ]
                of_prompts.append(np.mean(chosen))
            assert table.loc[n, column] == pytest.approx(np.mean(of_prompts))
            assert table.loc[n, f"{column}_se"] == pytest.approx(np.std(of_prompts, ddof=1) / math.sqrt(PROMPTS))
    assert table["proxy_reward"].is_monotonic_increasing
    assert table.loc[1, ["proxy_reward_gain", "gold_reward_gain", "kl_nats"]].tolist() == pytest.approx([0, 0, 0])
    gain = table.loc[6, "gold_reward"] - table.loc[1, "gold_reward"]
    assert table.loc[6, "gold_reward_gain"] == pytest.approx(gain)
    assert table["kl_bound_nats"].tolist() == pytest.approx([kl_bound(n) for n in (1, 2, 6)])
    assert (table["kl_nats"] <= table["kl_bound_nats"]).all()
    assert table.loc[6, "kl_nats"] > 0.9


def test_samples_are_scored_and_judged_as_each_alone_would_be(done, reward_checkpoints, sft_checkpoint):
    proxy, _, gold = reward_checkpoints
    rows, policy = rows_of(done)[::7], load_policy(sft_checkpoint)
    rewards = open_text_rewards(proxy)([row["prompt"] for row in rows], [row["response"] for row in rows])
    assert [row["proxy_reward"] for row in rows] == pytest.approx(rewards.tolist(), rel=1e-4, abs=1e-5)
    verdicts = gold_reward_judge(gold, 0.5).judge(
        [Comparison(row["prompt_id"], row["prompt"], row["response"], row["opponent"]) for row in rows]
    )
    for row, verdict in zip(rows, verdicts, strict=True):
        assert row["win_probability"] == pytest.approx(verdict.win_probability, rel=1e-4)
        assert row["member_rewards"] == [row["proxy_reward"]]
        prompt = policy.tokenizer(row["prompt"]).input_ids
        group = PromptGroup(np.array(prompt, np.int32), (np.array(row["token_ids"], np.int32),))
        with torch.inference_mode():
            assert row["policy_log_prob"] == pytest.approx(policy(pack([group])).sum().item(), rel=1e-4)
    assert len(read_completions(done / "completions.jsonl")) == POOL * PROMPTS


def test_the_run_has_a_step_for_each_n_and_is_found_again(done, reward_checkpoints, sft_checkpoint, store, tmp_path):
    proxy, _, gold = reward_checkpoints
    options = ["--reward", str(proxy), "--gold", str(gold), "--gold-temperature", "0.5"]
    main(["best-of-n", str(sft_checkpoint), *options, *SMALL, "--out", str(tmp_path)])
    assert (tmp_path / "best_of_n.csv").read_bytes() == (done / "best_of_n.csv").read_bytes()
    client = open_store(store, create=False)
    runs = client.search_runs([client.get_experiment_by_name("overopt").experiment_id])
    [run] = [run for run in runs if run.data.params.get("pool") == str(POOL)]
    assert run.data.tags["overopt.stage"] == "best_of_n"
    assert run.info.status == "FINISHED"
    assert run.data.params["objective"] == "best_of_n"
    assert run.data.tags["overopt.judge_temperature"] == "0.5"
    table = pd.read_csv(done / "best_of_n.csv").set_index("n")
    for name in ("kl_nats", "kl_se", "kl_bound_nats", "win_rate", "win_rate_se", "gold_reward", "proxy_reward"):
        history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, f"eval/{name}")}
        assert history == pytest.approx(table[name].to_dict())
    points = read_best_of_n(store).table.query(f"run_id == '{run.info.run_id}'")
    assert points["n"].tolist() == [1, 2, 6]
    for name in ("kl_nats", "win_rate", "gold_reward", "kl_bound_nats", "proxy_reward_se"):
        assert points[name].tolist() == pytest.approx(table[name].tolist())
    assert set(points["objective"]) == {"best of n"}
    with pytest.raises(ValueError, match="no align run"):  # nothing that advice could take for a checkpoint
        read_points(store)
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert logged == {"figures/best_of_n.png", "figures/best_of_n.svg"}


@pytest.mark.parametrize("combine", ["worst", "uncertainty_weighted"])
def test_an_ensemble_chooses_by_its_combination_and_no_judge_is_needed(
    reward_checkpoints, sft_checkpoint, tmp_path, combine
):
    *proxies, _ = reward_checkpoints
    options = ["--reward", *map(str, proxies), "--combine", combine, "--pool", "4", "--ns", "4", "--num-prompts", "5"]
    main(["best-of-n", str(sft_checkpoint), *options, "--out", str(tmp_path)])
    table, rows = pd.read_csv(tmp_path / "best_of_n.csv"), pd.DataFrame(rows_of(tmp_path))
    assert not {"win_rate", "gold_reward"} & set(table)
    members = np.stack(rows["member_rewards"])
    standard = (members - members.mean(axis=0)) / members.std(axis=0)
    expected = standard.min(axis=1) if combine == "worst" else standard.mean(axis=1) - 0.5 * standard.var(axis=1)
    assert rows["proxy_reward"].to_numpy() == pytest.approx(expected * members.std(axis=0).mean())
    assert table["n"].tolist() == [1, 4]
    assert table["proxy_reward"].iloc[1] == pytest.approx(rows.groupby("prompt_id")["proxy_reward"].max().mean())


def test_the_figure_s_numbers_are_gains_against_the_estimated_kl(done):
    table = pd.read_csv(done / "best_of_n.csv")
    numbers = best_of_n(table.sample(frac=1, random_state=0))
    assert numbers.n.tolist() == [1, 2, 6]
    assert numbers.d.tolist() == pytest.approx(np.sqrt(table["kl_nats"]).tolist())
    gold, proxy = numbers.gains
    assert (gold.name, proxy.name) == ("gold", "proxy")
    assert gold.values.tolist() == pytest.approx(table["gold_reward_gain"].tolist())
    assert proxy.half.tolist() == pytest.approx((1.96 * table["proxy_reward_gain_se"]).tolist())
    assert best_of_n(table.drop(columns=["win_rate", "gold_reward_gain"])).win_rate is None
    assert (done / "figures/best_of_n.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pool", "4", "--ns", "1", "8"], "the best of 8 can't be had from a pool of 4 samples"),
        (["--pool", "4", "--ns", "0"], "needs n of 1 or more"),
        (["--ns", "1", "--num-prompts", "1000"], "1000 evaluation prompts wanted"),
        (["--ns", "1", "--num-prompts", "0"], "at least one prompt"),
        (["--ns", "1", "--price", "-1"], "price of disagreement"),
        (["--ns", "1", "--gold", "{gold}", "--judge", "longer"], "leave one of them out"),
        (["--ns", "1", "--gold", "none.ckpt"], "no reward model at none.ckpt"),
        (["--ns", "1", "--reward", "{sft}"], "holds policy; expected reward_model"),
        (["--ns", "1", "--reward", "{proxy}", "{proxy}"], "named twice"),
    ],
)
def test_bad_input_is_one_line(reward_checkpoints, sft_checkpoint, tmp_path, capsys, options, message):
    proxy, _, gold = reward_checkpoints
    filled = [each.format(proxy=proxy, gold=gold, sft=sft_checkpoint) for each in options]
    reward = [] if "--reward" in filled else ["--reward", str(proxy)]
    with pytest.raises(SystemExit) as stopped:
        main(["best-of-n", str(sft_checkpoint), *reward, *filled, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_a_reward_model_nothing_is_chosen(sft_checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["best-of-n", str(sft_checkpoint)])
    assert "--reward CHECKPOINT" in capsys.readouterr().err.splitlines()[-1]
