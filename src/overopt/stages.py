"""The stages: each a typed function whose signature and docstring are its options and its help.

Nothing heavy is imported here: a stage imports its work when it is called.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from overopt.evaluation.judges.catalogue import JUDGES
from overopt.evaluation.judges.protocol import Judge


def quickstart(
    objectives: list[str] = ["dpo"],  # noqa: B006 (shown in --help; never mutated)
    betas: list[float] | None = None,
    seeds: list[int] = [0],  # noqa: B006
    sizes: list[str] = ["0.7M"],  # noqa: B006
    out: Path = Path("outputs/quickstart"),
    tracking_uri: str | None = None,
) -> None:
    """From nothing to an over-optimization curve: train, sample, judge, track, fit and draw.

    Runs on the embedded default, without network or GPU. Interrupted and started again with the same
    options, it goes on where it was.

    Args:
        objectives: direct alignment objectives: dpo, ipo, ipo_azar, slic, squared_hinge, exponential, savage.
        betas: prices of divergence; the recipe's seven by default.
        seeds: repeats; each has its own SFT policy, pairs, labels and training order.
        sizes: models of the embedded default, by parameters: 0.4M, 0.7M, 1.6M.
        out: folder for everything but the tracking store.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.quickstart import run_quickstart

    run_quickstart(objectives, betas, seeds, sizes, out, tracking_uri)


def sample_pairs(
    policy: str,
    out: Path,
    source: str | None = None,
    path: str | None = None,
    parts: list[Literal["train", "gold", "evaluation"]] = ["train", "evaluation"],  # noqa: B006
    max_pairs: int | None = None,
    max_evaluation_pairs: int | None = None,
    seed: int = 0,
) -> None:
    """Sample two responses of a policy to each prompt, as pairs to be labelled (Sec. 2.1).

    Args:
        policy: checkpoint of the policy, usually the SFT policy.
        out: JSON Lines file to write.
        source: data source of the prompts; what the policy was trained on by default.
        path: file or folder of the source.
        parts: parts of the posts that prompts come from.
        max_pairs: so many prompts at most of each part that is trained on.
        max_evaluation_pairs: so many at most of the evaluation part.
        seed: fixes the draws.
    """
    from overopt.experiment import sample_pairs_to_file

    sample_pairs_to_file(policy, out, source, path, parts, max_pairs, max_evaluation_pairs, seed)


def label_pairs(
    pairs: Path,
    out: Path,
    by: Literal["judge", "human"] = "judge",
    judge: Judge | None = None,
    order: Literal["seeded", "both"] = "seeded",
    cache: Path = Path("outputs/verdicts.db"),
    max_cost: float | None = None,
    seed: int = 0,
    repetitions: bool = False,
) -> None:
    """Label sampled pairs, and write a folder that ``--data.source jsonl --data.path FOLDER`` reads.

    Args:
        pairs: file that sample-pairs wrote.
        out: folder to write: pairs.jsonl and demonstrations.jsonl.
        by: judge: first against second sample, drawn with the judge's probability (Eq. 1 under a gold reward model);
            human: the person's response over the samples, over another post's response and over its own words
            in disorder (what trains a gold reward model).
        judge: a name, a file or a class path, as in overopt judge; --judge gold --judge.checkpoint FILE is a gold
            reward model.
        order: in which a judge that reads both texts sees them: drawn by the seed, or both, averaged.
        cache: SQLite file of verdicts.
        max_cost: of all verdicts, those that the cache knows included, in the currency of the price table.
        seed: fixes the draws of labels, and the order that texts are judged in.
        repetitions: with --by human, the person's response over a repeated phrase as well: what a gold reward model has
            to know that stands beside a policy gradient.
    """
    from overopt import experiment
    from overopt.judging import Judging

    judging = None if judge is None else Judging(judge, order, seed, cache, max_cost)
    experiment.label_pairs(pairs, out, by, judging, seed, repetitions)


def evaluate(
    checkpoints: Path,
    judge: Judge | None = None,
    order: Literal["seeded", "both"] = "seeded",
    cache: Path = Path("outputs/verdicts.db"),
    max_cost: float | None = None,
    num_prompts: int = 256,
    opponent: Literal["human", "preferred"] = "human",
    seed: int = 0,
    out: Path | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    sampler_url: str | None = None,
    sampler_model: str | None = None,
    sampler_serves: Literal["checkpoint", "reference"] = "checkpoint",
    sampler_concurrency: int = 32,
    sampler_timeout: float = 300.0,
    reference: str | None = None,
) -> None:
    """Sample, rescore and judge checkpoints of an aligned policy; log every metric to its run.

    With --sampler-url an OpenAI-compatible completions server draws the samples; they are rescored here all the same.

    Args:
        checkpoints: one .ckpt file, or a folder of examples-*.ckpt files.
        judge: compares samples with the dataset's responses, as in overopt judge; without one there is no win rate.
        order: in which a judge that reads both texts sees them: drawn by the seed, or both, averaged.
        cache: SQLite file of verdicts.
        max_cost: of all verdicts, those that the cache knows included, in the currency of the price table.
        num_prompts: held-out prompts, one a post; 256 give a win rate to +-6 points.
        opponent: the dataset's response that samples are judged against.
        seed: fixes the draws, for all checkpoints alike, and the order that texts are judged in.
        out: folder for completions as JSON Lines; evaluation/ beside the checkpoints by default.
        run_id: MLflow run to log to; the one that trained the checkpoint by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
        sampler_url: base URL of a server that takes and returns token ids, such as http://127.0.0.1:8000/v1 of
            vllm serve; it serves one model, so CHECKPOINTS is one file.
        sampler_model: the model's name on that server; by default the only one that it lists.
        sampler_serves: which policy the server has: the checkpoint's, or its reference, whose row is then measured.
        sampler_concurrency: requests to the server under way at a time.
        sampler_timeout: time-out of one request [s].
        reference: policy that KL, log-ratios and held-out loss are measured against; the one that the checkpoint was
            trained with by default. For a round of iterated DPO that had the last round's policy, give the original.
    """
    from overopt.evaluation.completion_server import CompletionServer
    from overopt.experiment import evaluate_checkpoints
    from overopt.judging import Judging

    if sampler_url is None and (sampler_model is not None or sampler_serves == "reference"):
        raise ValueError("--sampler-model and --sampler-serves are about a server: name it with --sampler-url")
    server = None
    if sampler_url is not None:
        server = CompletionServer(sampler_url, sampler_model, sampler_concurrency, sampler_timeout)
    evaluate_checkpoints(
        checkpoints,
        None if judge is None else Judging(judge, order, seed, cache, max_cost),
        num_prompts,
        opponent,
        seed,
        out,
        run_id,
        tracking_uri,
        server,
        sampler_serves,
        reference,
    )


def judge(
    completions: Path,
    judge: Judge | None = None,
    order: Literal["seeded", "both"] = "seeded",
    seed: int = 0,
    cache: Path = Path("outputs/verdicts.db"),
    max_cost: float | None = None,
    estimate_only: bool = False,
    out: Path | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Judge completions against the dataset's responses: win rate, length-controlled too, position bias, cost.

    --judge is api, gold, classifier, causal_lm, rouge or longer, or a file such as those of conf/judge; its options go
    with it, as in --judge api --judge.model gpt-4o-2024-08-06, and --judge.help api lists them. Stopped at any moment
    and started again, it goes on where it was.

    Args:
        completions: JSON Lines with prompt, response and opponent, such as evaluate writes, or a folder of them.
        judge: a name, a file or a class path.
        order: in which a judge that reads both texts sees them: drawn by the seed, or both, averaged.
        seed: of the order.
        cache: SQLite file of verdicts: what is in it is not asked again. Processes of one machine may share it.
        max_cost: of all verdicts, those that the cache knows included, in the currency of the price table; what could
            exceed it is not asked.
        estimate_only: say what it would ask and cost, and stop.
        out: folder to write the judged completions to; judged/ beside them by default.
        run_id: MLflow run to log to, at the examples seen that evaluate's file names bear; a run of its own by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.judging import Judging, judge_files

    if judge is None:
        raise ValueError(f"name a judge with --judge: {', '.join(JUDGES)}, or a file such as those of conf/judge")
    judge_files(Judging(judge, order, seed, cache, max_cost), completions, estimate_only, out, run_id, tracking_uri)


def export(
    checkpoint: Path, folder: Path, dtype: Literal["float32", "bfloat16"] = "float32", tracking_uri: str | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder: safetensors, tokenizer, generation settings, model card.

    Stock transformers, vLLM and the like load it. A policy becomes a causal LM whose generation settings sample from
    the whole distribution; a reward model becomes a sequence classifier with one label.

    Args:
        checkpoint: a .ckpt file.
        folder: to write; one that an earlier export wrote is replaced, any other that holds files is refused.
        dtype: of the weights; float32 is what was trained, bfloat16 half the size.
        tracking_uri: MLflow store, for the run's parameters and metrics in the model card; MLFLOW_TRACKING_URI, or
            else SQLite in mlruns/, by default. Where it has no such run, the card says so.
    """
    from overopt.export import export_checkpoint

    export_checkpoint(checkpoint, folder, dtype, tracking_uri)


def report(
    out: Path = Path("outputs/report"),
    experiment: str | None = None,
    study: str | None = None,
    tracking_uri: str | None = None,
    r0: Literal["measured", "fitted", "zero"] = "measured",
    errors_in_d: bool = False,
) -> None:
    """Fit laws to tracked runs and write points.csv, fits.csv, other tables, figures and report.html.

    Args:
        out: folder to write.
        experiment: name of the MLflow experiment; all experiments by default.
        study: id of the parent run whose children are reported, and with which the report is kept; all runs by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
        r0: win rate at d = 0: the reference's own, a fitted one, or 0 (Eq. 5 as printed).
        errors_in_d: add fits that count errors in the distance (orthogonal distance regression) to intervals.csv.
    """
    from overopt.analysis.store_report import report_from_store

    report_from_store(out, experiment, study, tracking_uri, r0, errors_in_d)


def advise(
    experiment: str | None = None,
    study: str | None = None,
    objectives: list[str] | None = None,
    models: list[str] | None = None,
    kl_budget: float | None = None,
    target: float | None = None,
    tolerance: float = 0.01,
    unfinished: bool = False,
    out: Path | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Which beta and checkpoint to ship, where the peak is, which runs are past it, which beta to try next.

    For each objective and model of a sweep, or of a part of one. Reads the tracking store alone. Says what is missing
    where the data can't carry advice, and advises the reference where nothing beats it.

    Args:
        experiment: name of the MLflow experiment; all experiments by default.
        study: id of the parent run whose children count; all runs by default.
        objectives: such as dpo; all of the store by default.
        models: as the report names them, such as gpt_neox-0.7M; all of the store by default.
        kl_budget: only checkpoints within it count [nats]; no limit by default.
        target: a win rate that is enough, such as 0.55: of the checkpoints that reach it, the nearest is taken.
        tolerance: win rate that may be given up for a policy nearer to the reference.
        unfinished: count runs that still go on, or did not end well, too.
        out: file to write the advice to as well, .json or .md.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.analysis.advice.advising import Wishes
    from overopt.analysis.store_advice import Filter, advise_from_store

    wanted = Filter(experiment, study, tuple(objectives or ()), tuple(models or ()), unfinished)
    advise_from_store(wanted, Wishes(kl_budget, target, tolerance), tracking_uri, out)


def data_report(
    source: str = "docstrings",
    path: str | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 2048,
    max_prompt_tokens: int | None = None,
    max_response_tokens: int | None = None,
    splits: Literal["hash", "published"] = "hash",
    evaluation_fraction: float | None = None,
    gold_fraction: float | None = None,
    out: Path | None = None,
    cache_dir: str = "outputs/cache",
) -> None:
    """Say what a data set holds: rows left out and why, parts, repeated labels, lengths, what is cut.

    Every fit keeps the same report of its own data as the artifact data_report.json of its run.

    Args:
        source: docstrings, tldr_openai, hub or jsonl.
        path: file or folder of the source, or for hub a dataset's name.
        tokenizer: policy whose tokenizer counts: checkpoint, Hugging Face folder or hub name; by default one that
            is trained on the training texts.
        vocab_size: of a tokenizer trained here.
        max_prompt_tokens: longer prompts have their post cut; the source's own limit by default.
        max_response_tokens: longer responses are cut; the source's own limit by default.
        splits: by the hash of the post id, or as published.
        evaluation_fraction: share of posts held out; the source's own by default.
        gold_fraction: share of posts kept for the gold reward model; the source's own by default.
        out: JSON file to write the report to as well.
        cache_dir: where what was read is kept.
    """
    from overopt.data.data_report import print_data_report
    from overopt.data.datamodule import PreferenceDataModule

    data = PreferenceDataModule(
        source,
        path,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=max_response_tokens,
        splits=splits,
        evaluation_fraction=evaluation_fraction,
        gold_fraction=gold_fraction,
        cache_dir=cache_dir,
        micro_batch_tokens=2**31,  # nothing goes through a model here
    )
    print_data_report(data, out)


def plan(
    fit_options: list[str],
    gpus: int = 1,
    gpu: str = "A100",
    gpu_memory: float | None = None,
    architecture: str | None = None,
    utilisation: float = 0.35,
    peak_tflops: float | None = None,
    price_per_gpu_hour: float | None = None,
    objectives: int = 3,
    betas: int = 7,
    seeds: int = 1,
    sizes: int = 1,
    num_prompts: int = 256,
    sft_examples: int | None = None,
    judge_calls_per_prompt: int = 1,
    judge_model: str | None = None,
    judge_price_per_call: float | None = None,
    judge_price_per_million: list[float] | None = None,
    judge_template_tokens: int = 180,
    judge_output_tokens: int = 60,
    out: Path | None = None,
) -> None:
    """Whether a training fits, how long it and its experiment take and what they cost, before anything is rented.

    Takes the options of fit beside its own, configuration files among them: --config conf/tldr_dpo.yaml
    --model.beta 0.05. Nothing is trained, no weights are opened.

    Args:
        fit_options: all options that are not this command's own.
        gpus: devices that a training is given.
        gpu: kind, for its rate and memory: A40, A100, H100, H200.
        gpu_memory: of each device [GiB]; the kind's by default.
        architecture: of the policy where the configuration's is not there yet: Hugging Face folder or name, such
            as EleutherAI/pythia-1b (the Pythias need no hub).
        utilisation: share of the peak rate that is reached; eager PyTorch on passes of some thousand tokens reaches
            0.3 to 0.5, the default is cautious.
        peak_tflops: of each device in the precision that trains [TFLOP/s]; the kind's by default.
        price_per_gpu_hour: in any currency.
        objectives: of the experiment.
        betas: for each objective.
        seeds: for each beta.
        sizes: model sizes whose judge calls are counted together; hours are those of this size.
        num_prompts: that each checkpoint is evaluated on.
        sft_examples: demonstrations of the SFT before an alignment; TL;DR's 116,722 by default.
        judge_calls_per_prompt: 2 where the judge is shown both orders.
        judge_model: that judges, priced by conf/judge/prices.yaml.
        judge_price_per_call: in any currency.
        judge_price_per_million: of a million input and a million output tokens, two numbers.
        judge_template_tokens: of a question besides the post and the two summaries.
        judge_output_tokens: of an answer.
        out: JSON file for all numbers.
    """
    from overopt.planning.command import print_plan
    from overopt.planning.grid import Grid, JudgePrices
    from overopt.planning.hardware import Hardware

    if judge_model is not None:
        from overopt.evaluation.judges.prices import DEFAULT_PRICES, price_of

        if judge_price_per_million is not None:
            raise ValueError("give --judge-model or --judge-price-per-million, not both")
        price = price_of(judge_model, DEFAULT_PRICES)
        judge_price_per_million = [price.input, price.output]
    print_plan(
        fit_options,
        Hardware(gpu, gpus, gpu_memory, utilisation, peak_tflops, price_per_gpu_hour),
        Grid(objectives, betas, seeds, sizes, num_prompts, judge_calls_per_prompt),
        JudgePrices(judge_price_per_call, judge_price_per_million, judge_template_tokens, judge_output_tokens),
        architecture,
        sft_examples,
        out,
    )


def tree_mdp(
    branching: int = 3,
    depth: int = 3,
    demonstrations: list[str] | None = None,
    preferences: list[str] | None = None,
    objectives: list[str] = ["dpo", "ipo", "slic"],  # noqa: B006
    betas: list[float] = [0.01, 0.1, 0.5],  # noqa: B006
    seeds: int = 50,
    cell: Literal["rnn", "gru", "lstm"] = "rnn",
    width: int = 64,
    observes: Literal["actions", "states"] = "actions",
    init_scale: float = 1.0,
    optimizer: Literal["adamw", "rmsprop"] = "adamw",
    learning_rate: float = 1e-3,
    sft_steps: int = 200,
    steps: int = 500,
    vary: list[str] = [],  # noqa: B006
    vary_seeds: int = 20,
    out: Path = Path("outputs/tree-mdp"),
    tracking_uri: str | None = None,
) -> None:
    """Where the probability goes on the tree MDP (App. E, Figs. 7 and 9 to 18), over many seeds.

    A recurrent policy is fine-tuned on demonstrations, then aligned to preferences, by the modules that train language
    models; the probability of every trajectory is known at every step. The paper gives neither the network's width nor
    how it is trained: those are options, and --vary shows what depends on them.

    Args:
        branching: actions at every state.
        depth: actions of a trajectory.
        demonstrations: trajectories, such as 'a0 a0 a0' or 's1 a0 s2 a0 s5 a0'; the paper's three by default.
        preferences: such as 'a1 a1 a0 > a0 a0 a0'; the paper's one by default.
        objectives: as in fit.
        betas: prices of divergence, for each objective.
        seeds: so many policies, that differ in their initial weights.
        cell: of the policy.
        width: its hidden units.
        observes: what it reads at each step: the action taken before, or the number of the state.
        init_scale: factor on PyTorch's initial weights.
        optimizer: of SFT and alignment.
        learning_rate: of both.
        sft_steps: optimiser steps on all demonstrations.
        steps: optimiser steps on all preferences.
        vary: width, preferences (their number), sft_steps, learning_rate, optimizer, cell, observes, init_scale: try
            other values of each, one at a time; some 1 to 3 minutes each, preferences longer.
        vary_seeds: seeds of those.
        out: folder for tables and figures.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.modules.optimizers import OptimizerSettings
    from overopt.theory.recurrent_policies import RecurrentArchitecture
    from overopt.theory.tree_mdp import TreeMDP, tree_data
    from overopt.theory.tree_training import TreeTraining
    from overopt.theory_stages.tree_mdp import TreeStudy, run_tree_mdp

    training = TreeTraining(
        RecurrentArchitecture(cell, width, observes, init_scale),
        sft_steps,
        steps,
        OptimizerSettings(optimizer, learning_rate, warmup_steps=0),
    )
    data = tree_data(TreeMDP(branching, depth), demonstrations, preferences)
    study = TreeStudy(data, training, tuple(objectives), tuple(betas), seeds)
    run_tree_mdp(study, vary, vary_seeds, out, tracking_uri)


def rank_deficiency(
    branching: int = 3,
    depth: int = 3,
    demonstrations: list[str] | None = None,
    preferences: list[str] | None = None,
    demonstration_mass: float = 0.9,
    files: list[Path] | None = None,
    objectives: list[str] = ["dpo", "ipo", "slic"],  # noqa: B006
    betas: list[float] = [0.01, 0.1, 0.5],  # noqa: B006
    lambdas: list[float] = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0],  # noqa: B006
    ood_masses: list[float] = [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999],  # noqa: B006
    draws: int = 200,
    descent_steps: int = 1000,
    ridge: float = 0.01,
    seed: int = 0,
    out: Path = Path("outputs/rank-deficiency"),
    tracking_uri: str | None = None,
) -> None:
    """What preferences leave free (Sec. 4): policies of equal loss, what it takes to tell them apart, RLHF beside them.

    On the tree of Fig. 6 with the data of App. E, another tree, or any finite response set from files. Exact: every
    response is listed, nothing is sampled or trained.

    Args:
        branching: actions at every state of the tree.
        depth: actions of a trajectory.
        demonstrations: trajectories such as 'a0 a0 a0'; the paper's three on its tree.
        preferences: such as 'a1 a1 a0 > a0 a0 a0'; the paper's one on its tree.
        demonstration_mass: the tree's reference has this much on the demonstrations and spreads the rest evenly, in
            place of an SFT policy; 0 is uniform.
        files: instead of a tree, JSON Lines of {prompt, response, reference_probability}, all responses of each prompt,
            with demonstration true where one is in the data otherwise; and of {prompt, chosen, rejected}.
        objectives: direct alignment objectives, as in quickstart.
        betas: prices of divergence [reward / nat].
        lambdas: weights of the regularisers: NLL of chosen responses, on-policy KL, chi-squared.
        ood_masses: of the policies of equal loss; unseen responses have this probability.
        draws: random orders in which preferences are drawn until nothing is left free.
        descent_steps: of descents over all logits from different OOD masses (Adam).
        ridge: of the reward that RLHF fits by Eq. 2, which has no minimum without it.
        seed: fixes the orders.
        out: folder for tables and figures.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.theory_stages.rank_deficiency import Settings, chosen_response_set, run_rank_deficiency

    settings = Settings(objectives, betas, lambdas, ood_masses, draws, descent_steps, ridge, seed)
    responses, tree = chosen_response_set(branching, depth, demonstrations, preferences, demonstration_mass, files)
    run_rank_deficiency(responses, settings, out, tracking_uri, tree=tree)


def token_q(
    checkpoints: list[Path],
    num_prompts: int = 64,
    responses: list[Literal["chosen", "rejected", "sampled"]] = ["chosen", "rejected", "sampled"],  # noqa: B006
    part: Literal["train", "evaluation"] = "train",
    gauge: Literal["sparse", "dense", "logits"] = "sparse",
    seed: int = 0,
    out: Path | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Soft Q- and V-values of aligned policies, token by token: bootstrapping on unseen tokens, optimism (App. D).

    Writes a row a token (tokens/RUN.parquet), means over prompts (summary.csv), V of the last checkpoints at other
    betas (values_at_betas.csv) and figures: heat maps over the text, curves over training and over beta. Each policy's
    reference is the row at 0 examples. Unseen are the tokens that no labelled response to the prompt takes after the
    same prefix.

    Args:
        checkpoints: .ckpt files, or folders of examples-*.ckpt files, one a run; several, of different betas, give
            curves over beta.
        num_prompts: prompts with labelled pairs, one a post.
        responses: what is read: the chosen and the rejected response of a pair, and one sampled from the policy.
        part: where prompts come from: train, what the policy was trained on, or evaluation, what was held out; its
            labelled responses are the seen ones.
        gauge: which of the values that a policy fixes up to a shift per state: sparse (rewards at the end of text
            only), dense (V is 0, each token is rewarded at once) or logits (Q is beta times the logits).
        seed: fixes the draws, for all checkpoints alike.
        out: folder to write; token_q/ beside the first run's checkpoints by default.
        run_id: MLflow run to log to; those that trained the checkpoints by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.theory_stages.token_q import TokenQSettings, measure_token_q

    settings = TokenQSettings(num_prompts, tuple(responses), part, gauge, seed)
    measure_token_q(checkpoints, settings, out, run_id, tracking_uri)


def evaluate_reward(
    checkpoints: list[Path],
    gold: Path | None = None,
    source: str | None = None,
    path: str | None = None,
    price: float = 0.5,
    out: Path | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Reward models on held-out labelled pairs: accuracy, calibration, agreement with a gold model.

    Several are evaluated alone and as ensembles: their mean, their worst case, and their mean less a price of their
    disagreement. Writes reward_models.csv, reliability.csv and a reliability diagram, and logs every metric to the run
    that trained the model; an ensemble gets a run of its own, and so does a model on data of another ``source``.

    Args:
        checkpoints: .ckpt files of reward models.
        gold: checkpoint of a gold reward model, whose rewards of the same responses are compared.
        source: data source of the pairs; what the first reward model was trained on by default, its held-out part.
        path: file or folder of the source.
        price: of disagreement, in the ensemble that weighs by uncertainty [1 / standard deviation of rewards].
        out: folder for tables and figures; reward_evaluation/ beside the first one's checkpoints by default.
        run_id: MLflow run to log to, of one checkpoint; the one that trained it by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.reward_stages.evaluate_reward import evaluate_reward_models

    evaluate_reward_models(
        checkpoints,
        gold=gold,
        source=source,
        path=path,
        price=price,
        out=out,
        run_id=run_id,
        tracking_uri=tracking_uri,
    )


def best_of_n(
    policy: str,
    reward: list[Path] = [],  # noqa: B006
    combine: Literal["mean", "worst", "uncertainty_weighted"] = "mean",
    price: float = 0.5,
    gold: Path | None = None,
    gold_temperature: float = 1.0,
    judge: Judge | None = None,
    order: Literal["seeded", "both"] = "seeded",
    cache: Path = Path("outputs/verdicts.db"),
    max_cost: float | None = None,
    pool: int = 64,
    ns: list[int] = [1, 2, 4, 8, 16, 32, 64],  # noqa: B006
    num_prompts: int = 256,
    opponent: Literal["human", "preferred"] = "human",
    source: str | None = None,
    path: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Best of n samples by a proxy reward: proxy and gold reward, win rate and KL for every n from one pool.

    Each prompt gets one pool of samples; the best of n is the mean over all subsets of n of it, exactly. Writes
    best_of_n.csv, a figure and completions.jsonl, and tracks a run of stage best_of_n whose steps are the n.

    Args:
        policy: the base policy that is sampled from: checkpoint, Hugging Face folder or hub name.
        reward: checkpoints of the reward models that samples are chosen by.
        combine: how several become one reward; each is centred and scaled by its rewards of all samples.
        price: of disagreement, for uncertainty_weighted [1 / standard deviation of rewards].
        gold: checkpoint of the gold reward model that judges; short for --judge gold --judge.checkpoint FILE.
        gold_temperature: its rewards are divided by it.
        judge: compares samples with the dataset's responses, as in overopt judge, instead of a gold reward model.
        order: in which a judge that reads both texts sees them: drawn by the seed, or both, averaged.
        cache: SQLite file of verdicts of --judge.
        max_cost: of all verdicts of --judge, those that the cache knows included.
        pool: samples a prompt.
        ns: each at most the pool.
        num_prompts: held-out prompts, one a post.
        opponent: the dataset's response that samples are judged against.
        source: data source of the prompts; what the policy was trained on by default, its held-out part.
        path: file or folder of the source.
        seed: fixes the draws.
        out: folder to write; best_of_n/ beside the policy's checkpoints by default.
        tracking_uri: MLflow store; MLFLOW_TRACKING_URI, or else SQLite in mlruns/, by default.
    """
    from overopt.evaluation.judges.gold_reward import gold_reward_judge
    from overopt.judging import Judging
    from overopt.reward_stages.best_of_n import BestOfNSettings, run_best_of_n

    settings = BestOfNSettings(combine, price, pool, tuple(ns), num_prompts, opponent, seed)
    if gold is not None and judge is not None:
        raise ValueError("--gold and --judge both judge the samples: leave one of them out")
    judging = None if judge is None else Judging(judge, order, seed, cache, max_cost)
    judged_by = judging if gold is None else gold_reward_judge(gold, gold_temperature)
    run_best_of_n(policy, reward, judged_by, settings, source=source, path=path, out=out, tracking_uri=tracking_uri)


STAGES: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "data-report": data_report,
    "sample-pairs": sample_pairs,
    "label-pairs": label_pairs,
    "evaluate": evaluate,
    "judge": judge,
    "report": report,
    "advise": advise,
    "export": export,
    "plan": plan,
    "tree-mdp": tree_mdp,
    "rank-deficiency": rank_deficiency,
    "token-q": token_q,
    "evaluate-reward": evaluate_reward,
    "best-of-n": best_of_n,
}
#: Of a stage that takes the options of ``fit`` beside its own, the argument that they come in.
FIT_OPTIONS = "fit_options"
