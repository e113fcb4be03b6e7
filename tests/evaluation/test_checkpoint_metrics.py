import math

import numpy as np
import pytest
import torch
from statsmodels.genmod import families
from statsmodels.genmod.generalized_linear_model import GLM

from overopt.data.packing import Packing
from overopt.evaluation.checkpoint_metrics import Evaluator, SampleEvaluator
from overopt.evaluation.judges.gold_reward import GoldRewardJudge
from overopt.evaluation.judges.protocol import Judge, ignore
from overopt.evaluation.records import Verdict
from overopt.models.policy import load_policy
from overopt.models.proxy_reward import ProxyReward
from overopt.models.reward_model import load_reward_model, reward_model_from_policy
from overopt.modules.direct_alignment import AlignmentObjective
from overopt.packed_tokens import PromptGroup, pack
from tiny import seeded_policy

SPEC_6 = [
    "eval/kl_nats",
    "eval/kl_se",
    "eval/forward_kl_nats",
    "eval/win_rate",
    "eval/win_rate_se",
    "eval/gold_reward",
    "eval/loss",
    "eval/implicit_reward_accuracy",
    "eval/chosen_log_ratio",
    "eval/rejected_log_ratio",
    "eval/response_tokens",
    "eval/length_r2",
    "eval/length_r2_uncentred",
    "eval/kl_k3_nats",
    "eval/forward_kl_se",
    "eval/tie_share",
    "eval/unreadable_share",
    "eval/unfinished_share",
]
# Beyond the contract, of a judge that has no price and does not read in an order.
FURTHER = [
    "eval/win_rate_low",
    "eval/win_rate_high",
    "eval/win_rate_length_controlled",
    "eval/win_rate_length_controlled_se",
    "eval/refused_share",
]
ALIGNMENT = AlignmentObjective("dpo", 0.3, length_penalty=0.02)
NUM_PROMPTS = 12


@pytest.fixture
def data(make_data, sft_checkpoint):
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    data.setup("fit")
    return data


@pytest.fixture
def gold(tiny_tokenizer) -> GoldRewardJudge:
    reward_model = reward_model_from_policy(seeded_policy(3, tiny_tokenizer, scale=5.0))
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    return GoldRewardJudge(reward_model, max_response_tokens=24, packing=Packing())


@pytest.fixture
def moved(sft_checkpoint):
    """A policy that has gone some way from the reference."""
    policy = load_policy(sft_checkpoint)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def evaluator(data, sft_checkpoint, judge, **changes) -> Evaluator:
    samples = SampleEvaluator(data, load_policy(sft_checkpoint), judge, **{"num_prompts": NUM_PROMPTS} | changes)
    return Evaluator(samples)


def test_the_metrics_are_the_contracts(data, sft_checkpoint, gold, moved):
    metrics, completions = evaluator(data, sft_checkpoint, gold).evaluate(moved, ALIGNMENT)
    assert sorted(metrics) == sorted(SPEC_6 + FURTHER)
    assert all(map(math.isfinite, metrics.values()))
    assert len({c.prompt_id for c in completions}) == len(completions) == NUM_PROMPTS
    assert metrics["eval/kl_nats"] > 0.1


def test_at_the_reference_nothing_has_moved(data, sft_checkpoint, gold):
    evaluator_ = evaluator(data, sft_checkpoint, gold)
    metrics, completions = evaluator_.evaluate(evaluator_.reference, ALIGNMENT)
    still = ["kl_nats", "kl_se", "kl_k3_nats", "forward_kl_nats", "forward_kl_se", "chosen_log_ratio"]
    assert {name: metrics[f"eval/{name}"] for name in still} == dict.fromkeys(still, 0)
    # All pairs are ties, which are not right: the accuracy has no chance level to start from.
    assert metrics["eval/implicit_reward_accuracy"] == 0
    assert not {"eval/length_r2", "eval/length_r2_uncentred"} & metrics.keys()  # nothing to explain
    margins = [0.02 * (len(p.chosen_ids) - len(p.rejected_ids)) for p in data.evaluation_set.tokenized]
    assert metrics["eval/loss"] == pytest.approx(np.mean([math.log1p(math.exp(-z)) for z in margins]), rel=1e-5)
    again = evaluator_.evaluate(evaluator_.reference, ALIGNMENT)
    assert again.completions is completions  # sampled once for all runs


def test_a_policy_gradient_has_the_proxys_reward_of_the_same_samples_and_no_loss_on_pairs(
    data, sft_checkpoint, reward_checkpoint, gold, moved
):
    proxy = ProxyReward([reward_checkpoint])
    evaluator_ = evaluator(data, sft_checkpoint, gold, proxy=proxy)
    metrics, completions = evaluator_.evaluate(moved, None)
    assert sorted(metrics) == sorted({*SPEC_6, *FURTHER, "eval/proxy_reward"} - {"eval/loss"})
    by_alignment, _ = evaluator(data, sft_checkpoint, gold).evaluate(moved, ALIGNMENT)
    assert {name: by_alignment[name] for name in metrics if name in by_alignment} == {
        name: value for name, value in metrics.items() if name != "eval/proxy_reward"
    }
    reward_model = load_reward_model(reward_checkpoint).eval()
    for prompt, completion in zip(evaluator_.prompts, completions, strict=True):
        group = PromptGroup(np.array(prompt.token_ids, np.int32), (np.array(completion.token_ids, np.int32),))
        with torch.inference_mode():
            assert completion.proxy_reward == pytest.approx(float(reward_model(pack([group]))), abs=1e-5)
    assert metrics["eval/proxy_reward"] == pytest.approx(np.mean([c.proxy_reward for c in completions]))
    assert np.std([c.proxy_reward for c in completions]) > 0.01


def one_at_a_time(policy, pairs) -> np.ndarray:
    """Log-probabilities of chosen and rejected responses, each alone through the stock forward."""
    totals = []
    for row in pairs.tokenized:
        for response in (row.chosen_ids, row.rejected_ids):
            tokens = torch.tensor(np.concatenate([row.prompt_ids, response])[None].astype(np.int64))
            with torch.inference_mode():
                log_probs = policy.causal_lm(input_ids=tokens).logits[0].double().log_softmax(-1)
            places = range(len(row.prompt_ids), tokens.shape[1])
            totals.append(sum(float(log_probs[t - 1, tokens[0, t]]) for t in places))
    return np.array(totals).reshape(-1, 2)


def test_metrics_of_pairs_agree_with_pairs_scored_alone(data, sft_checkpoint, moved):
    metrics, _ = evaluator(data, sft_checkpoint, None).evaluate(moved, ALIGNMENT)
    pairs = data.evaluation_set
    log_ratios = one_at_a_time(moved, pairs) - one_at_a_time(load_policy(sft_checkpoint), pairs)
    chosen, rejected = log_ratios.T
    assert metrics["eval/forward_kl_nats"] == pytest.approx(-chosen.mean(), rel=1e-4)
    assert metrics["eval/forward_kl_se"] == pytest.approx(chosen.std(ddof=1) / math.sqrt(len(chosen)), rel=1e-3)
    assert metrics["eval/chosen_log_ratio"] == -metrics["eval/forward_kl_nats"]
    assert metrics["eval/rejected_log_ratio"] == pytest.approx(rejected.mean(), rel=1e-4)
    assert metrics["eval/implicit_reward_accuracy"] == pytest.approx((chosen > rejected).mean())
    assert 0 < metrics["eval/implicit_reward_accuracy"] < 1
    length = np.array([len(p.chosen_ids) - len(p.rejected_ids) for p in pairs.tokenized])
    z = 0.3 * (chosen - rejected) + 0.02 * length
    assert metrics["eval/loss"] == pytest.approx(np.log1p(np.exp(-z)).mean(), rel=1e-4)


def test_metrics_of_samples_can_be_had_again_from_the_completions(data, sft_checkpoint, gold, moved):
    metrics, completions = evaluator(data, sft_checkpoint, gold).evaluate(moved, ALIGNMENT)
    log_ratios = np.array([c.policy_log_prob - c.reference_log_prob for c in completions])
    lengths = np.array([c.response_tokens for c in completions], dtype=float)
    assert metrics["eval/kl_nats"] == pytest.approx(log_ratios.mean(), rel=1e-6)
    assert metrics["eval/kl_se"] == pytest.approx(log_ratios.std(ddof=1) / math.sqrt(NUM_PROMPTS), rel=1e-6)
    assert metrics["eval/kl_k3_nats"] == pytest.approx(np.mean([c.k3 for c in completions]), rel=1e-6)
    assert metrics["eval/response_tokens"] == lengths.mean()
    assert metrics["eval/unfinished_share"] == np.mean([not c.finished for c in completions])
    assert metrics["eval/win_rate"] == pytest.approx(np.mean([c.win_probability for c in completions]))
    assert metrics["eval/gold_reward"] == pytest.approx(np.mean([c.gold_reward for c in completions]))
    words = np.array([len(c.response.split()) - len(c.opponent.split()) for c in completions])
    design = np.column_stack([np.ones(NUM_PROMPTS), np.tanh(words / words.std(ddof=1))])
    wins = np.array([c.win_probability for c in completions])
    at_equal_length = GLM(wins, design, family=families.Binomial()).fit().predict([1.0, 0.0])
    assert metrics["eval/win_rate_length_controlled"] == pytest.approx(at_equal_length.item())
    residuals = log_ratios - lengths * (lengths @ log_ratios) / (lengths @ lengths)
    assert metrics["eval/length_r2_uncentred"] == pytest.approx(1 - residuals @ residuals / (log_ratios @ log_ratios))
    centred = log_ratios - log_ratios.mean()
    assert metrics["eval/length_r2"] == pytest.approx(1 - residuals @ residuals / (centred @ centred))


def test_two_checkpoints_share_prompts_and_noise(data, sft_checkpoint, moved):
    evaluator_ = evaluator(data, sft_checkpoint, None)
    first, second = (evaluator_.evaluate(moved, ALIGNMENT) for _ in range(2))
    assert first.completions == second.completions
    _, other_seed = evaluator(data, sft_checkpoint, None, seed=1).evaluate(moved, ALIGNMENT)
    assert [c.prompt_id for c in other_seed] == [c.prompt_id for c in first.completions]
    assert [c.token_ids for c in other_seed] != [c.token_ids for c in first.completions]


def test_without_a_judge_there_is_no_win_rate(data, sft_checkpoint, moved):
    metrics, completions = evaluator(data, sft_checkpoint, None).evaluate(moved, ALIGNMENT)
    judged = {"eval/win_rate", "eval/win_rate_se", "eval/gold_reward", "eval/tie_share", "eval/unreadable_share"}
    assert set(SPEC_6) - metrics.keys() == judged
    assert {c.verdict for c in completions} == {"unjudged"}


class Moody(Judge):
    """Ties, wins and refusals in turn, for money, and mostly for what it reads first."""

    settings = {"judge": "moody"}  # noqa: RUF012

    def judge(self, comparisons, on_verdict=ignore, budget=None):
        answers = [
            Verdict("tie", 0.5, first_preferred=0.5, cost=0.25),
            Verdict("win", 1.0, first_preferred=1.0, cost=0.25),
            Verdict("refused", None, cost=0.125),
        ]
        return [answers[i % 3] for i in range(len(comparisons))]


def test_ties_and_unreadable_verdicts_are_counted_apart(data, sft_checkpoint, moved):
    metrics, completions = evaluator(data, sft_checkpoint, Moody()).evaluate(moved, ALIGNMENT)
    assert metrics["eval/win_rate"] == 0.75
    assert metrics["eval/tie_share"] == 0.5
    assert metrics["eval/unreadable_share"] == pytest.approx(1 / 3)
    assert metrics["eval/refused_share"] == pytest.approx(1 / 3)
    assert metrics["eval/position_bias"] == 0.25
    assert metrics["eval/judge_cost"] == NUM_PROMPTS / 3 * 0.625
    assert "eval/gold_reward" not in metrics
    assert [c.verdict for c in completions[:3]] == ["tie", "win", "refused"]
    assert completions[2].win_probability is None


def test_without_held_out_pairs_the_metrics_of_samples_remain(make_data, sft_checkpoint, moved, tmp_path):
    import json

    held_out = make_data(tokenizer=str(sft_checkpoint))
    rows = [{"id": str(i), "post_id": f"post {i}", "prompt": f"Post {i}:", "response": "a cat."} for i in range(60)]
    pairs = [
        {"id": f"pair {i}", "post_id": f"post {i}", "prompt": f"Post {i}:", "chosen": "a cat.", "rejected": "a dog."}
        for i in range(60)
        if held_out.fractions.part_of(f"post {i}") == "train"
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, [*rows, *pairs])))
    data = make_data(path=str(tmp_path / "some.jsonl"), examples="preferences", tokenizer=str(sft_checkpoint))
    data.setup("fit")
    metrics, _ = evaluator(data, sft_checkpoint, None).evaluate(moved, ALIGNMENT)
    assert "eval/kl_nats" in metrics
    assert not {"eval/loss", "eval/forward_kl_nats"} & metrics.keys()
