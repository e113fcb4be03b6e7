import itertools
import math

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from overopt.data.packing import Packing
from overopt.evaluation.sampling import (
    EvaluationPrompt,
    RescoredCompletions,
    evaluation_prompts,
    rescore,
    sample_here,
)
from overopt.models.policy import Policy, load_policy

END = 0
VOCABULARY = 6  # of the tokenizer's 300: enough to enumerate every response


def small_vocabulary_policy(seed: int, tokenizer) -> Policy:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    causal_lm = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **shape))
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert tokenizer.eos_token_id == END
    return Policy(causal_lm, tokenizer)


def sample_completions(
    policy: Policy, reference: Policy, asked, limit: int, batch_size: int = 256
) -> RescoredCompletions:
    sampled = sample_here(policy, asked, max_response_tokens=limit, seed=0, batch_size=batch_size)
    return rescore(policy, reference, asked, sampled, packing=Packing())


@torch.inference_mode()
def response_log_prob(policy: Policy, prompt: list[int], response: tuple[int, ...]) -> float:
    log_probs = policy.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def all_responses(limit: int) -> set[tuple[int, ...]]:
    return {
        tokens[: tokens.index(END) + 1] if END in tokens else tokens
        for tokens in itertools.product(range(VOCABULARY), repeat=limit)
    }


def prompts(copies: int) -> list[EvaluationPrompt]:
    ids = [[2, 3], [4, 5, 2, 2, 3]]
    return [EvaluationPrompt(str(i), str(i), ids[i % 2], "text", " opponent") for i in range(2 * copies)]


def test_kl_agrees_with_the_sum_over_all_responses(tiny_tokenizer):
    policy, reference = (small_vocabulary_policy(seed, tiny_tokenizer) for seed in (0, 1))
    limit, kl, unfinished = 3, 0.0, 0.0
    for prompt in prompts(1):
        for response in all_responses(limit):
            log_prob = response_log_prob(policy, prompt.token_ids, response)
            probability = math.exp(log_prob) / 2
            kl += probability * (log_prob - response_log_prob(reference, prompt.token_ids, response))
            unfinished += probability * (response[-1] != END)
    sampled = sample_completions(policy, reference, prompts(1500), limit)
    k1, k3 = sampled.kl.k1, sampled.kl.k3
    assert kl > 20 * k1.standard_error  # else agreement would say little
    assert k1.mean.item() == pytest.approx(kl, abs=3 * k1.standard_error.item())
    assert k3.mean.item() == pytest.approx(kl, abs=3 * k3.standard_error.item())
    share = sum(not completion.finished for completion in sampled.completions) / 3000
    assert share == pytest.approx(unfinished, abs=3 * math.sqrt(unfinished * (1 - unfinished) / 3000))


def test_completions_hold_the_log_probs_of_the_ids_that_were_sampled(tiny_tokenizer):
    policy, reference = (small_vocabulary_policy(seed, tiny_tokenizer) for seed in (0, 1))
    asked = prompts(20)
    sampled = sample_completions(policy, reference, asked, limit=5, batch_size=7)
    for prompt, completion in zip(asked, sampled.completions, strict=True):
        response = tuple(completion.token_ids)
        expected = [response_log_prob(model, prompt.token_ids, response) for model in (policy, reference)]
        assert completion.policy_log_prob == pytest.approx(expected[0], rel=1e-5)
        assert completion.reference_log_prob == pytest.approx(expected[1], rel=1e-5)
        assert completion.response == tiny_tokenizer.decode(response, skip_special_tokens=True)
        assert (completion.prompt_id, completion.opponent) == (prompt.prompt_id, " opponent")
    log_ratios = [c.policy_log_prob - c.reference_log_prob for c in sampled.completions]
    assert sampled.kl.k1.mean.item() == pytest.approx(sum(log_ratios) / 40, rel=1e-6)
    assert sampled.kl.k3.mean.item() == pytest.approx(sum(c.k3 for c in sampled.completions) / 40, rel=1e-6)


def test_a_policy_is_at_no_distance_from_itself(tiny_tokenizer):
    policy = small_vocabulary_policy(0, tiny_tokenizer)
    sampled = sample_completions(policy, policy, prompts(20), limit=5)
    assert sampled.kl.k1.mean == sampled.kl.k1.standard_error == sampled.kl.k3.mean == 0


def test_a_reference_without_a_number_is_not_taken_for_padding(tiny_tokenizer):
    policy, broken = (small_vocabulary_policy(0, tiny_tokenizer) for _ in range(2))
    with torch.no_grad():
        broken.causal_lm.get_output_embeddings().weight.fill_(torch.nan)
    sampled = sample_completions(policy, broken, prompts(3), limit=5)
    assert sampled.kl.k1.mean.isnan()


def test_the_batch_size_changes_no_completion(tiny_tokenizer):
    policy, reference = (small_vocabulary_policy(seed, tiny_tokenizer) for seed in (0, 1))
    runs = [
        sample_completions(policy, reference, prompts(10), limit=5, batch_size=batch_size) for batch_size in (20, 3)
    ]
    for one, other in zip(*(run.completions for run in runs), strict=True):
        assert one.token_ids == other.token_ids
        assert one.policy_log_prob == pytest.approx(other.policy_log_prob, rel=1e-5)


@pytest.mark.parametrize("examples", ["demonstrations", "preferences"])
def test_prompts_are_held_out_posts_each_once(make_data, sft_checkpoint, examples):
    data = make_data(examples=examples, tokenizer=str(sft_checkpoint))
    data.setup("fit")
    held_out = {e.post_id: e for e in data.held_out_demonstrations().examples}
    asked = evaluation_prompts(data, len(held_out))
    assert [p.post_id for p in asked] != sorted(p.post_id for p in asked)
    assert {p.post_id for p in asked} == set(held_out)
    for prompt in asked:
        assert prompt.text == held_out[prompt.post_id].prompt.text
        assert prompt.token_ids == load_policy(sft_checkpoint).tokenizer(prompt.text).input_ids
        assert prompt.opponent == held_out[prompt.post_id].response
    assert evaluation_prompts(data, 5) == asked[:5]


def test_the_opponent_is_the_persons_or_the_preferred_response(make_data):
    data = make_data(examples="preferences")
    data.setup("fit")
    chosen = {e.post_id: e.chosen for e in data.held_out_preferences().examples}
    human, preferred = (evaluation_prompts(data, 10, opponent) for opponent in ("human", "preferred"))
    assert all(p.opponent == chosen[p.post_id] for p in preferred)
    assert [p.post_id for p in human] == [p.post_id for p in preferred]
    assert all(a.opponent != b.opponent for a, b in zip(human, preferred, strict=True))


def test_a_post_with_several_examples_is_asked_once(make_data, tmp_path):
    import json

    rows = [
        {"id": f"{i} {k}", "post_id": f"post {i}", "prompt": f"Post {i}:", "response": f"summary {k}"}
        for i in range(40)
        for k in range(3)
    ]
    (tmp_path / "several.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = make_data(path=str(tmp_path / "several.jsonl"))
    data.setup("fit")
    num_posts = len({e.post_id for e in data.evaluation_set.examples})
    asked = evaluation_prompts(data, num_posts)
    assert len(data.evaluation_set) == 3 * num_posts == 3 * len({p.post_id for p in asked})
    with pytest.raises(ValueError, match=rf"{num_posts + 1} evaluation prompts wanted, {num_posts} held-out posts"):
        evaluation_prompts(data, num_posts + 1)


def test_an_unknown_opponent_is_refused(make_data):
    with pytest.raises(ValueError, match="unknown opponent 'best'; one of human, preferred"):
        evaluation_prompts(make_data(), 3, "best")
