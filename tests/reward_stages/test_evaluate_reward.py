import numpy as np
import pandas as pd
import pytest
import torch

from overopt.analysis.figures.reliability import reliability
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.data.datamodule import data_of_checkpoint
from overopt.models.reward_model import load_reward_model
from overopt.tracking.store import open_store


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, store):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


def held_out_margins(checkpoint):
    """Chosen less rejected reward of each held-out pair, pair by pair."""
    data = data_of_checkpoint(read_model_checkpoint(checkpoint), checkpoint)
    data.setup("predict")
    model = load_reward_model(checkpoint).eval()
    margins = []
    for place in range(len(data.evaluation_set)):
        with torch.inference_mode():
            chosen, rejected = model(data.evaluation_set.collate([place]).tokens).tolist()
        margins.append(chosen - rejected)
    return np.array(margins)


def test_several_reward_models_alone_together_and_beside_gold(reward_checkpoints, tmp_path, capsys):
    *proxies, gold = reward_checkpoints
    main(["evaluate-reward", *map(str, proxies), "--gold", str(gold), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "reward_models.csv").set_index("reward_model")
    assert [*table.index] == [
        "proxy-a", "proxy-b", "ensemble, mean", "ensemble, worst", "ensemble, uncertainty weighted",
    ]  # fmt: skip
    of_gold = held_out_margins(gold)
    for name, proxy in zip(("proxy-a", "proxy-b"), proxies, strict=True):
        margins = held_out_margins(proxy)
        row = table.loc[name]
        assert 0 < (margins > 0).mean() < 1
        assert row["accuracy"] == pytest.approx((margins > 0).mean())
        assert row["mean_margin"] == pytest.approx(margins.mean(), rel=1e-4, abs=1e-6)
        assert row["brier_score"] == pytest.approx(np.mean(1 / (1 + np.exp(margins)) ** 2), rel=1e-5)
        assert row["gold_same_order"] == pytest.approx((np.sign(margins) == np.sign(of_gold)).mean())
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert (table["pairs"] == len(of_gold)).all()
    assert f"{len(of_gold)} pairs" in printed
    bins = pd.read_csv(tmp_path / "reliability.csv")
    assert bins.groupby("reward_model")["pairs"].sum().tolist() == [len(of_gold)] * 5
    for panel in reliability(bins, table.reset_index()):
        assert panel.shares.sum() == pytest.approx(1)
        distance = (panel.bins["accuracy"] - panel.bins["confidence"]).abs() @ panel.bins["share"]
        assert distance == pytest.approx(panel.error)
    assert (tmp_path / "figures/reliability.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_in_the_run_that_trained_the_model_and_an_ensemble_has_one_run(reward_checkpoints, tmp_path, store):
    *proxies, _gold = reward_checkpoints
    for _ in range(2):
        main(["evaluate-reward", *map(str, proxies), "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "reward_models.csv").set_index("reward_model")
    client = open_store(store, create=False)
    for name, proxy in zip(("proxy-a", "proxy-b"), proxies, strict=True):
        training = read_model_checkpoint(proxy).training
        [*_, logged] = client.get_metric_history(training["run_id"], "eval/accuracy")
        assert (logged.step, logged.value) == (training["examples_seen"], pytest.approx(table.loc[name, "accuracy"]))
    runs = client.search_runs([client.get_experiment_by_name("overopt").experiment_id])
    ensembles = [run for run in runs if run.data.params.get("members") == "2"]
    assert sorted(run.data.params["objective"] for run in ensembles) == sorted(table.index[2:])
    assert {run.info.status for run in ensembles} == {"FINISHED"}


def test_pairs_may_come_from_other_data_whose_metrics_have_a_run_of_their_own(
    reward_checkpoints, preference_folder, tmp_path, store
):
    lines = (preference_folder / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:30]))
    [proxy, *_] = reward_checkpoints
    options = ["--source", "jsonl", "--path", str(tmp_path / "few.jsonl"), "--out", str(tmp_path / "out")]
    main(["evaluate-reward", str(proxy), "--out", str(tmp_path / "out")])
    client = open_store(store, create=False)
    trained_in = read_model_checkpoint(proxy).training["run_id"]
    own = client.get_run(trained_in).data.metrics
    for _ in range(2):
        main(["evaluate-reward", str(proxy), *options])
    assert client.get_run(trained_in).data.metrics == own
    [elsewhere] = client.search_runs(["1"], f"params.checkpoints = '{proxy}' and params.members = '1'")
    table = pd.read_csv(tmp_path / "out/reward_models.csv")
    assert elsewhere.data.metrics["eval/accuracy"] == pytest.approx(table["accuracy"].item())
    pairs = pd.read_csv(tmp_path / "out/reward_models.csv")["pairs"]
    assert 0 < pairs.item() < len(held_out_margins(proxy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.ckpt"], "no checkpoint at none.ckpt"),
        (["{sft}"], "holds policy; expected reward_model"),
        (["{proxy}", "{proxy}"], "named twice"),
        (["{proxy}", "{gold}", "--run-id", "0123"], "leave it out"),
        (["{proxy}", "--run-id", "0123"], "does not give run 0123"),
        (["{proxy}", "--price", "-1"], "price of disagreement"),
        (["{proxy}", "--source", "jsonl", "--path", "none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input_is_one_line(reward_checkpoints, sft_checkpoint, tmp_path, capsys, arguments, message):
    proxy, _, gold = reward_checkpoints
    filled = [each.format(sft=sft_checkpoint, proxy=proxy, gold=gold) for each in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate-reward", *filled, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
