"""How often each offline judge agrees with people, on a sample of the real TL;DR comparisons.

    make human-agreement

Reads human comparisons (Stiennon et al. 2020) in OpenAI's format and asks every judge that needs no endpoint which of
the two summaries is better:

- longer (words), longer (characters): the baselines that a judge has to beat;
- ROUGE-L against the post;
- a gold reward model of this project and the same model exported and read as a Hugging Face classifier, which must say
  the same; the quickstart's has seen docstrings only, so nothing is expected of it here;
- a small language model, in one order and in both, averaged.

Which summary is the sample is drawn by a fixed seed. A judge that ties or can't be read is not counted as right or
wrong; those shares stand beside. Intervals are Wilson's, 95%, as if comparisons were independent; some share a post.

The check value is published elsewhere: people choose the longer summary in about 65% of comparisons (64.6% by words,
67.1% by characters on a larger cut). The last line has ours. Table and summary, numbers only, are written to
``results/human_agreement``.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from kept import keep_summary
from rich.progress import Progress

from overopt.checkpoints.format import read_model_checkpoint
from overopt.data.datamodule import data_of_checkpoint
from overopt.data.prompt_format import cut_prompts
from overopt.data.schema import PreferenceExample
from overopt.data.sources.tldr_openai import TldrOpenaiSource
from overopt.evaluation.agreement import agreement
from overopt.evaluation.judges.causal_lm import causal_lm_judge
from overopt.evaluation.judges.gold_reward import GoldRewardJudge
from overopt.evaluation.judges.longer import LongerJudge
from overopt.evaluation.judges.orders import BothOrders
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.judges.reward_classifier import RewardClassifierJudge
from overopt.evaluation.judges.rouge import RougeJudge
from overopt.evaluation.judges.verdict_cache import Cached, VerdictCache
from overopt.evaluation.position_bias import position_bias
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.compute import stage_device
from overopt.models.hf_export import stock_model, write_hf_folder
from overopt.models.reward_model import load_reward_model

SEED = 0
# What a reward model reads at most: no summary of TL;DR is cut, a long post is. Rotary models read on where the
# quickstart's, trained on 72 tokens, has never been.
PROMPT_TOKENS, SUMMARY_TOKENS = 320, 192
JUDGES = ("longer", "rouge", "gold", "lm")


def labelled(examples: Sequence[PreferenceExample]) -> tuple[list[Comparison], list[Verdict]]:
    """Comparisons and people's verdicts: the sample is the chosen summary, or the rejected one, by a draw."""
    comparisons, people = [], []
    for example, chosen_first in zip(examples, np.random.default_rng(SEED).random(len(examples)) < 0.5, strict=True):
        texts = (example.chosen, example.rejected) if chosen_first else (example.rejected, example.chosen)
        comparisons.append(Comparison(example.example_id, example.prompt.text, *texts))
        people.append(Verdict("win", 1.0) if chosen_first else Verdict("loss", 0.0))
    return comparisons, people


def row(judge: str, verdicts: Sequence[Verdict], people: Sequence[Verdict]) -> dict[str, object]:
    """A row of the table; what either side leaves open is not counted as right or wrong."""
    decided = [(v, label) for v, label in zip(verdicts, people, strict=True) if v.win_probability not in (None, 0.5)]
    found = agreement([verdict for verdict, _ in decided], [label for _, label in decided])
    readable = sum(v.win_probability is not None for v in verdicts)
    return {
        "judge": judge,
        "comparisons": len(verdicts),
        "decided": len(decided),
        "agreement": found.share,
        "agreement_low": found.low,
        "agreement_high": found.high,
        "kappa": found.kappa,
        "kappa_low": found.kappa_low,
        "kappa_high": found.kappa_high,
        "tie_share": (readable - len(decided)) / len(verdicts),
        "unreadable_share": (len(verdicts) - readable) / len(verdicts),
    }


def asked(judge: Judge, comparisons: Sequence[Comparison], name: str) -> list[Verdict]:
    """The judge's verdicts, with a progress bar."""
    start = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task(name, total=len(comparisons))
        verdicts = judge.judge(comparisons, lambda _place, _verdict: progress.advance(task))
    print(f"{name}: {len(comparisons)} comparisons in {time.perf_counter() - start:.0f} s", flush=True)
    return verdicts


def gold_and_export(
    checkpoint: Path, examples: Sequence[PreferenceExample], comparisons: Sequence[Comparison]
) -> tuple[dict[str, list[Verdict]], str]:
    """Verdicts of a reward model, and of the same one through its export; how far apart their rewards are."""
    reward_model = load_reward_model(checkpoint).to(stage_device())
    opened = read_model_checkpoint(checkpoint)
    prompts = cut_prompts(
        [example.prompt for example in examples],
        reward_model.tokenizer,
        PROMPT_TOKENS,
        example_ids=[example.example_id for example in examples],
    )
    fitting = [replace(c, prompt=prompt.text) for c, prompt in zip(comparisons, prompts, strict=True)]
    packing = data_of_checkpoint(opened, checkpoint).packing
    gold = GoldRewardJudge(reward_model, max_response_tokens=SUMMARY_TOKENS, packing=packing)
    verdicts = {"gold reward model": asked(gold, fitting, "gold reward model")}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = opened.description.tokenizer()
        write_hf_folder(Path(folder), stock_model(opened), tokenizer, dtype="float32", card="", provenance={})
        classifier = RewardClassifierJudge(folder, "joined", max_tokens=PROMPT_TOKENS + SUMMARY_TOKENS)
        verdicts["the same, exported"] = asked(classifier, fitting, "the same, exported")
    ours, theirs = ([v.sample_reward for v in of_judge] for of_judge in verdicts.values())
    apart = np.abs(np.subtract(ours, theirs)).max()
    span = f"{min(ours):.2f} to {max(ours):.2f}"
    return verdicts, f"gold reward model: rewards from {span}; those of its export differ by {apart:.1e} at most"


def length_line(verdicts: Sequence[Verdict], people: Sequence[Verdict], unit: str) -> str:
    found = row(unit, verdicts, people)
    interval = f"{100 * found['agreement_low']:.1f}, {100 * found['agreement_high']:.1f}"
    ties = found["comparisons"] - found["decided"]
    return f"{100 * found['agreement']:.1f}% [{interval}] by {unit} ({ties} ties left out of {found['comparisons']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=Path, default=Path("../shared/data/tldr/comparisons_sample.jsonl"))
    parser.add_argument("--gold-model", type=Path, default=Path("outputs/quickstart/gold/checkpoints/last.ckpt"))
    parser.add_argument("--language-model", default="smollm2-135m")
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=JUDGES)
    parser.add_argument("--out", type=Path, default=Path("results/human_agreement"), help="for table and summary")
    options = parser.parse_args()
    if not options.comparisons.exists():
        print(f"no human comparisons at {options.comparisons}: nothing to agree with; give their path by --comparisons")
        return
    examples = TldrOpenaiSource(options.comparisons).read().preferences
    comparisons, people = labelled(examples)
    verdicts: dict[str, list[Verdict]] = {}
    lines = [f"{len(comparisons)} human comparisons over {len({e.post_id for e in examples})} posts"]
    longer = {unit: LongerJudge(unit).judge(comparisons) for unit in ("words", "characters")}
    if "longer" in options.judges:
        verdicts |= {f"longer ({unit})": of_unit for unit, of_unit in longer.items()}
    if "rouge" in options.judges:
        verdicts["ROUGE-L against the post"] = asked(RougeJudge("prompt"), comparisons, "ROUGE-L against the post")
    if "gold" in options.judges:
        if options.gold_model.exists():
            of_gold, line = gold_and_export(options.gold_model, examples, comparisons)
            verdicts |= of_gold
            lines.append(line)
        else:
            lines.append(f"no gold reward model at {options.gold_model} (make quickstart trains one): left out")
    if "lm" in options.judges:
        name = options.language_model
        with tempfile.TemporaryDirectory() as folder:
            judge = Cached(causal_lm_judge(name), VerdictCache(Path(folder) / "verdicts.db"))
            there = asked(judge, comparisons, f"{name}, one order")
            both = asked(BothOrders(judge), comparisons, f"{name}, both orders")
        verdicts |= {f"{name}, one order": there, f"{name}, both orders": both}
        bias = position_bias(both)
        lines.append(
            f"{name}: position bias {bias.bias:+.3f} [{bias.low:+.3f}, {bias.high:+.3f}] in favour of the summary that "
            "it reads first"
        )
    table = pd.DataFrame([row(name, of_judge, people) for name, of_judge in verdicts.items()])
    lines += [
        f"{found.judge}: agrees with people in {100 * found.agreement:.1f}% [{100 * found.agreement_low:.1f}, "
        f"{100 * found.agreement_high:.1f}] of {found.decided}, kappa {found.kappa:+.2f} [{found.kappa_low:+.2f}, "
        f"{found.kappa_high:+.2f}]; ties {100 * found.tie_share:.1f}%, "
        f"unreadable {100 * found.unreadable_share:.1f}%"
        for found in table.itertuples()
    ]
    shares = [length_line(of_unit, people, unit) for unit, of_unit in longer.items()]
    lines.append(f"people choose the longer summary: {'; '.join(shares)}")
    keep_summary(options.out, lines)  # numbers only, no text of the data
    table.to_csv(options.out / "agreement.csv", index=False, float_format="%.6g")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
