"""The numbers behind the numbers: what the tests assert, measured and printed.

    make numerics

1. the step-0 loss of every objective, through the real forward pass, against its value at margin 0;
2. response log-probabilities of a padded batch against an unbatched, unpadded forward of the stock Hugging
   Face model, and the gradient of their sum, relative by norm, in float32;
3. KL estimated on samples against brute-force enumeration of all responses, in standard errors;
4. every loss and its gradient against a formula written out here;
5. metrics over uneven batches against the same over all examples at once.

The last line says how many of the five hold.
"""

import itertools
import math

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from overopt.metrics.kl import SequenceKL
from overopt.models.generation import sample_responses
from overopt.models.log_probs import response_log_probs
from overopt.modules.direct_alignment import AlignmentObjective, PairScores
from overopt.objectives.preference import PREFERENCE_LOSSES

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "gpt_neox": GPTNeoXConfig(vocab_size=101, **TINY),
    "llama": LlamaConfig(vocab_size=101, num_key_value_heads=2, **TINY),
    "qwen2": Qwen2Config(vocab_size=101, num_key_value_heads=2, **TINY),
}
BETA = 0.3
AT_ZERO = {
    "dpo": math.log(2),
    "ipo": 1.0,
    "ipo_azar": 1 / BETA**2,
    "slic": 1.0,
    "squared_hinge": 1.0,
    "exponential": 1.0,
    "savage": 0.25,
}
# g(z) and g'(z), by hand; ipo_azar is ipo / beta^2.
BY_HAND = {
    "dpo": (lambda z: math.log1p(math.exp(-z)), lambda z: -1 / (1 + math.exp(z))),
    "ipo": (lambda z: (z - 1) ** 2, lambda z: 2 * (z - 1)),
    "ipo_azar": (lambda z: (z - 1) ** 2 / BETA**2, lambda z: 2 * (z - 1) / BETA**2),
    "slic": (lambda z: max(0.0, 1 - z), lambda z: -1.0 if z < 1 else 0.0),
    "squared_hinge": (lambda z: max(0.0, 1 - z) ** 2, lambda z: -2 * max(0.0, 1 - z)),
    "exponential": (lambda z: math.exp(-z), lambda z: -math.exp(-z)),
    "savage": (lambda z: (1 + math.exp(z)) ** -2, lambda z: -2 * math.exp(z) * (1 + math.exp(z)) ** -3),
}


def step_zero() -> bool:
    """Policy and reference one model, scored in different batches."""
    worst = 0.0
    model = _model("gpt_neox")
    ids, mask = _padded_batch()
    policy = response_log_probs(model, ids, mask).sum(dim=1)
    reference = torch.stack([response_log_probs(model, i[None], m[None]).sum() for i, m in zip(ids, mask, strict=True)])
    chosen, rejected = (policy - reference).chunk(2)
    for name, value in AT_ZERO.items():
        scores = PairScores(chosen, rejected, torch.zeros(len(chosen), dtype=torch.int64))
        loss = AlignmentObjective(name, BETA).pair_losses(scores).mean().item()
        worst = max(worst, abs(loss - value) / value)
    print(f"1. step-0 loss of {len(AT_ZERO)} objectives: largest relative error {worst:.1e}")
    return worst < 1e-5


def log_probs() -> bool:
    """Padded batch against one stock forward a sequence."""
    worst_value = worst_gradient = 0.0
    for name in CONFIGS:
        model = _model(name)
        ids, mask = _padded_batch()
        batched = response_log_probs(model, ids, mask)
        gradient = _gradient(model, batched.sum())
        rows = []
        for row_ids, row_mask in zip(ids, mask, strict=True):
            length = int(row_mask.nonzero().max()) + 1
            stock = model(row_ids[None, :length]).logits.log_softmax(dim=-1)[0, :-1]
            rows.append(stock.gather(1, row_ids[1:length, None]).squeeze(1)[row_mask[1:length]])
        single = torch.cat(rows)
        stock_gradient = _gradient(model, single.sum())
        worst_value = max(worst_value, float(((batched[mask] - single) / single).detach().abs().max()))
        worst_gradient = max(worst_gradient, float((gradient - stock_gradient).norm() / stock_gradient.norm()))
    print(
        f"2. response log-probs against the stock model ({', '.join(CONFIGS)}): largest relative error "
        f"{worst_value:.1e}, gradients {worst_gradient:.1e}"
    )
    return worst_value < 1e-5 and worst_gradient < 1e-5


def kl_by_enumeration(num_samples: int = 20_000) -> bool:
    """KL of two tiny models: mean over samples against the sum over all responses of up to three tokens."""
    policy, reference = (_model("gpt_neox", seed, vocabulary=5, scale=3.0) for seed in (0, 1))
    prompt, end, longest = [2, 3], 0, 3
    responses = list(_all_responses(5, end, longest))
    exact = 0.0
    with torch.no_grad():
        for response in responses:
            p, q = (_log_prob(model, prompt, response) for model in (policy, reference))
            exact += math.exp(p) * (p - q)
        drawn = sample_responses(
            policy, [prompt] * num_samples, eos_token_id=end, max_response_tokens=longest, seed=0, batch_size=4096
        )
        kl = SequenceKL()
        for first in range(0, num_samples, 4096):
            chunk = [prompt + sample.token_ids for sample in drawn[first : first + 4096]]
            ids = torch.tensor([tokens + [1] * (len(prompt) + longest - len(tokens)) for tokens in chunk])
            lengths = torch.tensor([len(tokens) for tokens in chunk])
            places = torch.arange(ids.shape[1])
            mask = (places >= len(prompt)) & (places < lengths[:, None])
            kl.update(response_log_probs(policy, ids, mask), response_log_probs(reference, ids, mask), mask)
    k1, k3 = kl.compute()
    z1, z3 = (float((k.mean - exact) / k.standard_error) for k in (k1, k3))
    print(
        f"3. KL over {len(responses)} responses {exact:.4f} nats; {num_samples} samples: k1 {k1.mean:.4f} "
        f"({z1:+.2f} standard errors), k3 {k3.mean:.4f} ({z3:+.2f})"
    )
    return abs(z1) < 3 and abs(z3) < 3


def losses_by_hand() -> bool:
    """Values and gradients in float64 on a grid that avoids the hinges' corner."""
    worst = 0.0
    for name, (value, slope) in BY_HAND.items():
        for z in [-7.3, -1.1, -0.2, 0.0, 0.4, 0.9, 1.7, 6.5]:
            logit = torch.tensor([z], dtype=torch.float64, requires_grad=True)
            loss = PREFERENCE_LOSSES[name](logit, beta=BETA)
            loss.sum().backward()
            assert logit.grad is not None
            worst = max(worst, abs(loss.item() - value(z)), abs(logit.grad.item() - slope(z)))
    print(f"4. {len(BY_HAND)} losses and gradients against formulas by hand: largest difference {worst:.1e}")
    return worst < 1e-10


def uneven_batches() -> bool:
    """KL over batches of 1, 7 and 92 against one batch of 100."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (-torch.rand(100, 6, generator=generator) * 5 for _ in range(2))
    mask = torch.rand(100, 6, generator=generator) < 0.7
    whole, parts = SequenceKL(), SequenceKL()
    whole.update(policy, reference, mask)
    for rows in (slice(0, 1), slice(1, 8), slice(8, 100)):
        parts.update(policy[rows], reference[rows], mask[rows])
    a, b = whole.compute(), parts.compute()
    worst = max(float((x - y).abs()) for x, y in zip(a.k1[:2] + a.k3[:2], b.k1[:2] + b.k3[:2], strict=True))
    print(f"5. KL and its standard errors over uneven batches: largest difference {worst:.1e}")
    return worst < 1e-12


def _model(name: str, seed: int = 0, vocabulary: int | None = None, scale: float = 1.0):
    torch.manual_seed(seed)
    config = CONFIGS[name] if vocabulary is None else GPTNeoXConfig(vocab_size=vocabulary, **TINY)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def _padded_batch():
    generator = torch.Generator().manual_seed(3)
    prompts, responses = [7, 1, 12, 4], [5, 9, 1, 3]
    longest = max(p + r for p, r in zip(prompts, responses, strict=True))
    ids = torch.randint(0, 101, (4, longest), generator=generator)
    places = torch.arange(longest)
    starts = torch.tensor(prompts)[:, None]
    mask = (places >= starts) & (places < starts + torch.tensor(responses)[:, None])
    return ids, mask


def _gradient(model, value):
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _all_responses(vocabulary: int, end: int, longest: int):
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            ended = end in tokens
            if (ended and tokens.index(end) == length - 1) or (not ended and length == longest):
                yield list(tokens)


def _log_prob(model, prompt, response) -> float:
    logits = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(response))


def main() -> None:
    """Measure and print."""
    held = [step_zero(), log_probs(), kl_by_enumeration(), losses_by_hand(), uneven_batches()]
    print(f"{sum(held)} of {len(held)} hold")


if __name__ == "__main__":
    main()
