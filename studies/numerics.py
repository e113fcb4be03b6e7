"""The numbers behind the numbers: what the tests assert, measured and printed.

    make numerics

1. the step-0 loss of every objective, through the real forward pass, against its value at margin 0;
2. response log-probabilities of packed pairs with shared prompts against an unbatched, unpadded forward of the
   stock Hugging Face model, and the gradient of their sum, relative by norm, in float32;
3. KL estimated on samples against brute-force enumeration of all responses, in standard errors;
4. every loss and its gradient against a formula written out here;
5. metrics over uneven batches against the same over all examples at once.

The last line says how many of the five hold.
"""

import itertools
import math

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from overopt.data.packing import Packing
from overopt.metrics.kl import SequenceKL
from overopt.models.generation import sample_responses
from overopt.models.grouped_attention import use_grouped_attention
from overopt.models.log_probs import response_log_probs
from overopt.modules.direct_alignment import AlignmentObjective, PairScores
from overopt.objectives.likelihood import ResponseLikelihood
from overopt.objectives.preference import PREFERENCE_LOSSES
from overopt.packed_tokens import PromptGroup, pack

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
    """Policy and reference one model; the policy scores packed pairs, the reference each response alone."""
    worst = 0.0
    model = _model("gpt_neox")
    tokens = pack(_pairs())
    policy = tokens.sums(response_log_probs(model, tokens))
    reference = torch.stack([response_log_probs(model, pack([alone])).sum() for alone in _each_alone()])
    chosen, rejected = (policy - reference).view(-1, 2).unbind(dim=1)
    for name, value in AT_ZERO.items():
        lengths = tokens.lengths()[::2]
        scores = PairScores(chosen, rejected, torch.zeros_like(lengths), ResponseLikelihood(-policy[::2], lengths))
        loss = AlignmentObjective(name, BETA).pair_losses(scores).mean().item()
        worst = max(worst, abs(loss - value) / value)
    print(f"1. step-0 loss of {len(AT_ZERO)} objectives: largest relative error {worst:.1e}")
    return worst < 1e-5


def log_probs() -> bool:
    """Shared prompts in one packed row, logits in chunks, against one stock forward a response."""
    worst_value = worst_gradient = 0.0
    for name in CONFIGS:
        model = _model(name)
        chunk_of_five_tokens = 5 * 4 * 101 / 2**20  # [MiB]
        ours = response_log_probs(model, pack(_pairs()), logits_mib=chunk_of_five_tokens)
        gradient = _gradient(model, ours.sum())
        stock = torch.cat([_stock_log_probs(model, *_ids(alone)) for alone in _each_alone()])
        stock_gradient = _gradient(model, stock.sum())
        worst_value = max(worst_value, float(((ours - stock) / stock).detach().abs().max()))
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
            p, q = (float(_stock_log_probs(model, prompt, response).sum()) for model in (policy, reference))
            exact += math.exp(p) * (p - q)
        drawn = sample_responses(
            policy, [prompt] * num_samples, eos_token_id=end, max_response_tokens=longest, seed=0, batch_size=4096
        )
        kl = SequenceKL()
        groups = [PromptGroup(np.array(prompt), (np.array(sample.token_ids),)) for sample in drawn]
        for _, tokens in Packing(max_tokens=16384).batches(groups):
            scores = [tokens.padded(response_log_probs(model, tokens)) for model in (policy, reference)]
            kl.update(*scores, tokens.mask())
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
    use_grouped_attention(model)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    return model


def _pairs() -> list[PromptGroup]:
    draw = np.random.default_rng(3)
    lengths = [(7, 5, 9), (1, 1, 3), (12, 8, 1), (4, 2, 2)]
    groups = [[draw.integers(0, 101, length) for length in of_group] for of_group in lengths]
    return [PromptGroup(prompt, (chosen, rejected)) for prompt, chosen, rejected in groups]


def _each_alone() -> list[PromptGroup]:
    return [PromptGroup(pair.prompt_ids, (response,)) for pair in _pairs() for response in pair.responses]


def _ids(alone: PromptGroup) -> tuple[list[int], list[int]]:
    return alone.prompt_ids.tolist(), alone.responses[0].tolist()


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


def _stock_log_probs(model, prompt: list[int], response: list[int]):
    """Hugging Face's own forward: one response, no padding, all logits."""
    ids = torch.tensor([prompt + response])
    log_probs = model(ids).logits[0, :-1].log_softmax(dim=-1)
    return log_probs.gather(1, ids[0, 1:, None]).squeeze(1)[len(prompt) - 1 :]


def main() -> None:
    """Measure and print."""
    held = [step_zero(), log_probs(), kl_by_enumeration(), losses_by_hand(), uneven_batches()]
    print(f"{sum(held)} of {len(held)} hold")


if __name__ == "__main__":
    main()
