"""Sampling for evaluation side by side: ours against plain ``generate``, same weights, prompts and batch size.

    python benchmarks/sampling.py --size 70m

The policy has the shape of Pythia with random weights, made so that a response ends with a probability of about
1/32 at each token, as TL;DR's do. Both sides sample from the whole distribution at temperature 1. The last line
prints the ratio of their median times.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tables import machine, write_table
from transformers import GPTNeoXForCausalLM
from workload import SHAPES, TLDR, Shape, draw_pairs, random_model

from overopt.models.generation import sample_responses

HERE = Path(__file__).parent
END = 0


def policy(shape: Shape, vocabulary: int, mean_length: float) -> GPTNeoXForCausalLM:
    """Random weights whose end of text has a probability of about 1 / mean_length everywhere."""
    causal_lm = random_model(shape, vocabulary).eval()
    with torch.no_grad():
        # The last hidden state gets a constant part, which the end of text alone looks at.
        causal_lm.gpt_neox.final_layer_norm.bias.fill_(1.0)
        head = causal_lm.get_output_embeddings().weight
        head -= head.mean(dim=1, keepdim=True)
        head[END] = np.log(vocabulary / (mean_length - 1)) / shape.hidden
    return causal_lm


def ours(causal_lm: GPTNeoXForCausalLM, prompts: list[list[int]], limit: int, batch_size: int) -> list[int]:
    """Lengths of the responses."""
    sampled = sample_responses(
        causal_lm, prompts, eos_token_id=END, max_response_tokens=limit, seed=0, batch_size=batch_size
    )
    return [len(response.token_ids) for response in sampled]


@torch.inference_mode()
def generate(causal_lm: GPTNeoXForCausalLM, prompts: list[list[int]], limit: int, batch_size: int) -> list[int]:
    """The same by ``generate``, prompts in their order."""
    lengths = []
    for first in range(0, len(prompts), batch_size):
        rows = prompts[first : first + batch_size]
        longest = max(map(len, rows))
        ids = torch.tensor([[END] * (longest - len(row)) + row for row in rows], device=causal_lm.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=causal_lm.device)
        out = causal_lm.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=limit,
            pad_token_id=END,
        )[:, longest:].tolist()
        lengths += [row.index(END) + 1 if END in row else limit for row in out]
    return lengths


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="70m")
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--prompt-tokens", type=float, default=320)
    parser.add_argument("--limit", type=int, default=128, help="of responses [tokens]")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    lengths = TLDR.scaled(arguments.prompt_tokens / 320)
    prompts = [p.prompt.tolist() for p in draw_pairs(arguments.prompts, lengths, arguments.vocabulary)]
    causal_lm = policy(SHAPES[arguments.size], arguments.vocabulary, 32).to(arguments.device)
    contenders: dict[str, Callable[..., list[int]]] = {"overopt": ours, "generate": generate}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    mean_lengths: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, contender in contenders.items():
            start = time.perf_counter()
            sampled = contender(causal_lm, prompts, arguments.limit, arguments.batch_size)
            seconds[name].append(time.perf_counter() - start)
            mean_lengths[name] = float(np.mean(sampled))
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    rows = [
        {
            "contender": name,
            "s for all prompts": f"{median[name]:.2f}",
            "times overopt's": f"{median[name] / median['overopt']:.2f}",
            "mean response tokens": f"{mean_lengths[name]:.1f}",
        }
        for name in contenders
    ]
    about = f"{arguments.prompts} prompts of about {arguments.prompt_tokens:g} tokens, {arguments.batch_size} a batch"
    name = f"sampling_{arguments.device}_{arguments.size}_prompt{arguments.prompt_tokens:g}"
    write_table(arguments.out / f"{name}.md", f"Sampling, Pythia-{arguments.size} shape, {about}", rows, machine())
    print(f"generate takes {median['generate'] / median['overopt']:.2f}x the time of overopt")


if __name__ == "__main__":
    main()
