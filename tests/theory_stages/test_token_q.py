import os

import numpy as np
import pandas as pd
import pytest
import torch

from overopt.checkpoints.checkpoint_names import checkpoint_paths
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.data.datamodule import data_of_checkpoint
from overopt.models.policy import load_policy
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.packed_tokens import PromptGroup, pack
from overopt.theory_stages import token_q_measurements
from overopt.theory_stages.token_q import TokenQSettings, measure_token_q, open_runs
from overopt.theory_stages.token_q_measurements import TokenMeasurer, labelled_prompts
from overopt.theory_stages.token_q_tables import summarise
from overopt.tracking.runs import start_run
from overopt.tracking.store import open_store
from tiny import quiet_trainer, seeded_policy, tiny_data

BETAS = (0.05, 0.5)
PROMPTS = 6
BOLD = OptimizerSettings("rmsprop", learning_rate=2e-2, warmup_steps=2)


@pytest.fixture(scope="session")
def aligned(preference_folder, sft_checkpoint, tmp_path_factory):
    """Folders of checkpoints of two betas."""
    root = tmp_path_factory.mktemp("aligned")
    folders = []
    for beta in BETAS:
        folders.append(root / f"beta{beta}" / "checkpoints")
        pairs = {"examples": "preferences", "tokenizer": str(sft_checkpoint), "batch_size": 6}
        data = tiny_data(preference_folder, root / "cache", **pairs)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            schedule = CheckpointSchedule(str(folders[-1]), examples=[12])
            trainer = quiet_trainer(root, callbacks=[schedule], enable_checkpointing=True)
            trainer.fit(DirectAlignmentModule(str(sft_checkpoint), "dpo", beta, optimizer=BOLD), datamodule=data)
    return folders


@pytest.fixture
def measurer(aligned):
    """Makes measurers of the first run's data and reference."""
    first = read_model_checkpoint(checkpoint_paths(aligned[0])[0])
    data = data_of_checkpoint(first, first.training["reference"])
    data.setup("predict")
    reference = load_policy(first.training["reference"])
    return lambda **settings: TokenMeasurer(data, reference, **{"num_prompts": PROMPTS} | settings)


@pytest.fixture
def policy(tiny_tokenizer):
    """Far from its reference."""
    return seeded_policy(7, tiny_tokenizer, scale=4.0)


def rows_of(table, prompt_id, response):
    return table[(table["prompt_id"] == prompt_id) & (table["response"] == response)]


@torch.inference_mode()
def all_logits(policy, prompt_ids, response):
    """By the stock model, a sequence at a time."""
    ids = torch.tensor([[*prompt_ids, *response]])
    return policy.causal_lm(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].double().numpy()


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("gauge", ["sparse", "dense", "logits"])
def test_each_token_satisfies_eq_8_to_10_over_the_whole_vocabulary_of_the_stock_model(measurer, policy, gauge):
    made, beta = measurer(gauge=gauge), 0.3
    tokens = made.measure(policy, beta).tokens
    checked = ended = 0
    for prompt in made.prompts:
        for kind in ("chosen", "rejected", "sampled"):
            rows = rows_of(tokens, prompt.prompt.prompt_id, kind)
            response = rows["token_id"].tolist()
            if kind != "sampled":
                assert response == (prompt.chosen if kind == "chosen" else prompt.rejected).tolist()
            logits = all_logits(policy, prompt.prompt.token_ids, response)
            log_pi = log_softmax(logits)
            log_ref = log_softmax(all_logits(made.reference, prompt.prompt.token_ids, response))
            places = np.arange(len(response))
            value = rows["value"].to_numpy()
            # Eq. 9: V is the soft maximum of Q over all tokens, V + beta log pi; Eq. 10, as mended, gives pi back.
            q_values = value[:, None] + beta * log_pi
            np.testing.assert_allclose(beta * np.log(np.exp(q_values / beta).sum(axis=1)), value, atol=1e-4)
            np.testing.assert_allclose(rows["q_value"], q_values[places, response], atol=1e-4)
            if gauge == "logits":
                np.testing.assert_allclose(rows["q_value"], beta * logits[places, response], atol=1e-4)
            # Eq. 8, with the next row's V.
            bootstrap = rows["next_value"].to_numpy()
            np.testing.assert_allclose(bootstrap[:-1], value[1:], atol=1e-12)
            right = rows["reward"] + beta * log_ref[places, response] + bootstrap
            finished = response[-1] == policy.tokenizer.eos_token_id
            np.testing.assert_allclose((rows["q_value"] - right)[: None if finished else -1], 0, atol=1e-4)
            if finished:
                assert bootstrap[-1] == 0
                total = beta * (log_pi - log_ref)[places, response].sum()
                assert rows["reward"].sum() - value[0] == pytest.approx(total, abs=1e-3)
                if gauge == "sparse":
                    np.testing.assert_allclose(rows["reward"].iloc[:-1], 0, atol=1e-10)
            checked += len(response)
            ended += finished
    assert checked == len(tokens) > 50
    assert tokens["prompt_id"].drop_duplicates().tolist() == [p.prompt.prompt_id for p in made.prompts]
    assert ended > 6


def test_unseen_shares_are_what_labelled_responses_leave_over(measurer, policy):
    made = measurer()
    tokens = made.measure(policy, 0.3).tokens
    off_data = 0
    for prompt in made.prompts:
        labelled = [prompt.chosen.tolist(), prompt.rejected.tolist()]
        for kind in ("chosen", "sampled"):
            rows = rows_of(tokens, prompt.prompt.prompt_id, kind)
            response = rows["token_id"].tolist()
            for model, column in ((policy, "unseen_share"), (made.reference, "reference_unseen_share")):
                probs = np.exp(log_softmax(all_logits(model, prompt.prompt.token_ids, response)))
                for place in range(len(response)):
                    seen = {y[place] for y in labelled if y[:place] == response[:place] and len(y) > place}
                    expected = 1 - sum(probs[place, token] for token in seen)
                    assert rows[column].iloc[place] == pytest.approx(expected, abs=1e-5)
                    assert rows["prefix_seen"].iloc[place] == bool(seen)
                    off_data += not seen
    assert off_data > 10
    assert tokens.loc[tokens["response"] != "sampled", "prefix_seen"].all()


def test_another_pair_of_the_same_prompt_makes_its_tokens_seen(make_data, sft_checkpoint):
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    data.setup("predict")
    pairs = data.train_set
    prompt, other = pairs.tokenized[0], pairs.tokenized[1]
    pairs.tokenized[1] = other._replace(prompt_ids=prompt.prompt_ids)
    found = {p.prompt.post_id: p for p in labelled_prompts(data, "train", len(pairs))}
    labelled = [ids.tolist() for ids in found[pairs.examples[0].post_id].labelled]
    for ids in (prompt.chosen_ids, prompt.rejected_ids, other.chosen_ids, other.rejected_ids):
        assert ids.tolist() in labelled
    # Prompts are of the part that is asked for, one a post, whatever their number.
    held_out = labelled_prompts(data, "evaluation", 3)
    assert {p.prompt.post_id for p in held_out}.isdisjoint(found)
    assert [p.prompt.post_id for p in labelled_prompts(data, "evaluation", 5)][:3] == [
        p.prompt.post_id for p in held_out
    ]


def test_log_ratios_are_those_of_training_and_the_references_own_are_zero(measurer, policy):
    made = measurer()
    tokens = made.measure(policy, 0.3).tokens
    for prompt in made.prompts:
        packed = pack([PromptGroup(np.array(prompt.prompt.token_ids), (prompt.chosen,))])
        with torch.inference_mode():
            trained = policy(packed).numpy()
        found = rows_of(tokens, prompt.prompt.prompt_id, "chosen")["log_prob"]
        np.testing.assert_allclose(found, trained, atol=1e-5)
    own = made.measure(made.reference, 0.3).tokens
    assert len(own) > 50
    for column in ("value", "next_value", "reward", "optimism", "headroom"):
        assert (own[column] == 0).all()
    assert (own["unseen_share"] == own["reference_unseen_share"]).all()
    assert (own["q_value"] < 0).all()


def test_logits_held_a_few_states_at_a_time_change_nothing(measurer, policy, monkeypatch):
    others = [0.1, 0.3]
    whole = measurer().measure(policy, 0.3, other_betas=others)
    sizes = []
    monkeypatch.setattr(token_q_measurements, "LOGITS_MIB", 3 * 4 * 300 / 2**20)
    plain = token_q_measurements.measure_states
    monkeypatch.setattr(
        token_q_measurements, "measure_states", lambda logits, *rest: sizes.append(len(logits)) or plain(logits, *rest)
    )
    parts = measurer().measure(policy, 0.3, other_betas=others)
    assert max(sizes) <= 3
    pd.testing.assert_frame_equal(parts.tokens, whole.tokens, rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(parts.curves, whole.curves, rtol=1e-4, atol=1e-5)


def test_means_are_over_prompts_with_their_standard_error():
    table = pd.DataFrame(
        {
            "run": "r",
            "response": "sampled",
            "beta": 2.0,
            "prompt_id": ["p", "p", "p", "q"],
            "prefix_seen": [True, True, False, True],
            "unseen_share": [0.2, 0.6, 1.0, 0.8],
            "reference_unseen_share": [0.1, 0.3, 1.0, 0.8],
            "optimism": [1.0, 1.0, 4.0, 0.0],
            "headroom": [3.0, 1.0, 0.0, 0.0],
            "value_above_max_q": 0.5,
            "value": [0.0, 1.0, 2.0, 5.0],
            "q_value": 0.0,
            "log_prob": [-1.0, -1.0, -2.0, -3.0],
            "reference_log_prob": [-2.0, -1.0, -1.5, -1.0],
        }
    )
    (row,) = summarise(table, ["run", "response"]).to_dict("records")
    assert row["prompts"] == 2
    assert row["unseen_share"] == pytest.approx((0.4 + 0.8) / 2)  # the state that no response reaches is not counted
    assert row["unseen_share_se"] == pytest.approx(np.std([0.4, 0.8], ddof=1) / np.sqrt(2))
    assert row["unseen_share_change"] == pytest.approx((0.2 + 0.0) / 2)
    assert row["off_data_share"] == pytest.approx(1 / 6)
    assert row["optimism"] == pytest.approx((2.0 + 0.0) / 2)
    assert row["optimism_share"] == pytest.approx((0.25 + 0.5 + 1.0) / 3)  # of q there is none: R is constant
    assert row["value"] == pytest.approx((1.0 + 5.0) / 2)
    assert row["implicit_reward"] == pytest.approx((2 * 0.5 + 2 * -2.0) / 2)


def test_the_command_writes_tables_and_figures_and_logs_them_to_the_run(aligned, tmp_path, capsys):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = open_store(uri, create=True)
    run_id = start_run(client, "dpo", "align")
    options = ["--num-prompts", "4", "--tracking-uri", uri]
    main(["token-q", str(aligned[0]), "--out", str(tmp_path / "one"), "--run-id", run_id, *options])
    summary = pd.read_csv(tmp_path / "one" / "summary.csv")
    assert summary["examples_seen"].drop_duplicates().tolist() == [0, 12, 40]
    assert set(summary["response"]) == {"chosen", "rejected", "sampled"}
    tokens = pd.read_parquet(tmp_path / "one" / "tokens")
    assert tokens["prompt_id"].nunique() == 4
    run = client.get_run(run_id)
    history = client.get_metric_history(run_id, "token_q/chosen_unseen_share")
    assert {metric.step for metric in history} == {0, 12, 40}
    expected = summary[(summary["response"] == "chosen") & (summary["examples_seen"] == 40)]["unseen_share"].item()
    assert run.data.metrics["token_q/chosen_unseen_share"] == pytest.approx(expected)
    assert run.data.tags["overopt.token_q.gauge"] == "sparse"
    kept = {os.path.basename(file.path) for file in client.list_artifacts(run_id, "token_q")}
    assert {"summary.csv", "values_at_betas.csv", "dpo-beta0.05.parquet", "heat_map_dpo-beta0.05.svg"} <= kept
    assert "residual of the soft Bellman equation" in capsys.readouterr().out
    figures = {file.stem for file in (tmp_path / "one" / "figures").iterdir()}
    assert figures == {"heat_map_dpo-beta0.05", "over_training", "values_against_beta"}  # one beta, no curve over beta

    # Several places, options between them; the same checkpoints give the same numbers.
    first, second = str(aligned[0]), str(aligned[1] / "last.ckpt")
    main(["token-q", first, *options[:2], second, "--responses", "chosen", "--out", str(tmp_path / "two")])
    both = pd.read_csv(tmp_path / "two" / "summary.csv")
    assert both["beta"].drop_duplicates().tolist() == [0.05, 0.5]
    assert both.groupby("beta")["examples_seen"].apply(list).tolist() == [[0, 12, 40], [0, 40]]
    alone = summary[summary["response"] == "chosen"].reset_index(drop=True)
    pd.testing.assert_series_equal(both["unseen_share"][:3], alone["unseen_share"])
    assert (tmp_path / "two" / "figures" / "over_betas.svg").is_file()


def test_runs_of_one_beta_keep_apart_and_mixed_folders_are_refused(aligned, tmp_path):
    last = aligned[0] / "last.ckpt"
    (tmp_path / "copy.ckpt").write_bytes(last.read_bytes())
    assert [run.label for run in open_runs([last, tmp_path / "copy.ckpt", aligned[1]])] == [
        "dpo-beta0.05-1",
        "dpo-beta0.05-2",
        "dpo-beta0.5",
    ]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, folder in enumerate(aligned):
        (mixed / f"examples-{number:08d}.ckpt").write_bytes((folder / "last.ckpt").read_bytes())
    with pytest.raises(ValueError, match=r"00001.ckpt is of another run than .*00000.ckpt: beta 0.5, not 0.05"):
        measure_token_q([mixed], TokenQSettings(2, ("chosen",)), tmp_path / "out", None, None)
    assert not (tmp_path / "out").exists()


def test_a_diverged_policy_is_named_and_nothing_is_written(aligned, tmp_path):
    content = torch.load(aligned[0] / "last.ckpt", weights_only=True)
    for name, weight in content["state_dict"].items():
        content["state_dict"][name] = weight * float("nan") if weight.is_floating_point() else weight
    torch.save(content, tmp_path / "diverged.ckpt")
    with pytest.raises(ValueError, match=r"diverged.ckpt: log-probabilities are not finite"):
        measure_token_q(
            [tmp_path / "diverged.ckpt"], TokenQSettings(2, ("chosen", "rejected")), tmp_path / "out", None, None
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoints"),
        (["gone"], "no checkpoints at gone: expected a .ckpt file or a folder"),
        (["half.ckpt"], "half.ckpt is no readable checkpoint"),
        (["SFT"], "written by stage 'sft'; only aligned policies"),
        (["ALIGNED", "ALIGNED"], "is named twice"),
        (["ALIGNED", "OTHER", "--run-id", "abc"], "--run-id is one run, and 2 places are named"),
        (["ALIGNED", "--run-id", "abc"], "no tracking store"),
        (["ALIGNED", "--num-prompts", "0"], "at least one prompt"),
        (["ALIGNED", "--num-prompts", "5000"], "5000 prompts wanted, 40 posts with labelled pairs found in part train"),
        (["ALIGNED", "--part", "test"], "test"),
        (["ALIGNED", "--gauge", "dual"], "dual"),
        (["ALIGNED", "--responses", "best"], "best"),
        (["ALIGNED", "--responses", "chosen", "chosen"], "each kind of response once"),
        (["ALIGNED", "--out", "half.ckpt"], "half.ckpt is a file"),
    ],
)
def test_bad_input_ends_with_one_line_and_writes_nothing(
    aligned, sft_checkpoint, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    names = {"SFT": str(sft_checkpoint), "ALIGNED": str(aligned[0]), "OTHER": str(aligned[1])}
    with pytest.raises(SystemExit) as end:
        main(["token-q", *(names.get(argument, argument) for argument in arguments)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["half.ckpt"]
    assert not (aligned[0].parent / "token_q").exists()
