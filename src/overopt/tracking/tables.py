"""Tracking store -> tidy rows: one a run and evaluated checkpoint.

Reading only: no store, table or folder is created, and an old store is not migrated.
"""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from mlflow.exceptions import MlflowException

from overopt.tracking.method_labels import ensemble_label
from overopt.tracking.runs import FAILURE_TAG, PARENT_TAG, PROXY_TAG, STAGE_TAG
from overopt.tracking.store import open_store, shown_uri, sqlite_path

METRICS = (
    "kl_nats",
    "kl_se",
    "forward_kl_nats",
    "win_rate",
    "win_rate_se",
    "gold_reward",
    "loss",
    "implicit_reward_accuracy",
    "chosen_log_ratio",
    "rejected_log_ratio",
    "response_tokens",
    "length_r2",
    "length_r2_uncentred",
    "kl_k3_nats",
    "forward_kl_se",
    "tie_share",
    "unreadable_share",
    "unfinished_share",
    "refused_share",
    "win_rate_length_controlled",
    "win_rate_length_controlled_se",
    "position_bias",
    "position_bias_se",
    "proxy_reward",
    "cost_tokens",
    "cost_seconds",
)
"""Last names of the ``eval/`` metrics, in the order of points.csv."""

RUN_COLUMNS = ("run_id", "objective", "model", "num_parameters", "beta", "seed")
COLUMNS = (*RUN_COLUMNS, "examples_seen", "epoch_fraction", *METRICS)
"""Columns of a points table; points.csv has all but ``cost_seconds``, which stands in costs.csv."""

_STAGES = ("align", "rl")
UNNAMED_SETTINGS = ("reward", "unfinished_penalty", "samples_per_prompt", "clip_range", "inner_epochs")
"""What policy gradients may differ in beyond their name."""
# A step counts as an evaluated checkpoint by these: a loss alone may be logged at any step.
_EVALUATED_BY = {"kl_nats", "win_rate"}


class Points(NamedTuple):
    """What a store holds.

    Attributes:
        table: one row a run of stage align or rl and evaluated step, with :data:`COLUMNS`; ``examples_seen`` 0 is the
            reference itself. NaN where a metric was not logged. Ordered by objective, model, beta, seed
            and examples_seen.
        notes: what was left out, and why, in words.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def read_points(
    tracking_uri: str,
    *,
    experiment: str | None = None,
    parent_run_id: str | None = None,
    unfinished: bool = False,
) -> Points:
    """Read the evaluated checkpoints of all align runs, policy gradients (stage rl) among them.

    Of several runs of one cell (objective, model, beta, seed and data) the newest counts. A length penalty
    or label smoothing makes another objective, and becomes part of its name; so do a policy gradient's KL as a penalty
    and several reward models. Policy gradients of one cell that differ in :data:`UNNAMED_SETTINGS`, such as the files
    of their reward models, all count, and a note says so.

    Args:
        tracking_uri: an MLflow store, such as ``sqlite:///mlruns/mlflow.db`` or ``http://localhost:5000``.
        experiment: name of the one experiment to read; all of them by default.
        parent_run_id: read the children of this run (a study) only.
        unfinished: count runs that are still running, or that failed, as well.

    Raises:
        ValueError: there is no such store, or nothing in it to analyse; the message says what was looked
            for and the way out.
    """
    _require_current_schema(tracking_uri)
    client = open_store(tracking_uri, create=False)
    try:
        runs = _align_runs(client, tracking_uri, experiment, parent_run_id)
        runs, notes = _countable(runs, unfinished)
        histories, ambiguous = _histories(client, runs)
    except MlflowException as problem:
        raise ValueError(f"cannot read {shown_uri(tracking_uri)}: {_first_line(problem)}") from problem
    notes += ambiguous

    rows = []
    for run, history in zip(runs, histories, strict=True):
        if not history:
            notes.append(f"{_cell_name(run)}: left out, no evaluated checkpoint (run {run.info.run_id})")
        identity = _identity(run)
        examples_per_epoch = _number(run, "examples_per_epoch")
        rows += [
            {
                **identity,
                "examples_seen": step,
                "epoch_fraction": step / examples_per_epoch if examples_per_epoch else None,
                **metrics,
            }
            for step, metrics in sorted(history.items())
        ]
    if not rows:
        raise ValueError(
            f"{shown_uri(tracking_uri)} has no evaluated checkpoint of a finished align run"
            f"{_within(experiment, parent_run_id)}; evaluate the runs first"
            + "".join(f" ({note})" for note in notes[:1])
        )
    return Points(_tidy(rows), tuple(notes))


def _tidy(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.astype(
        {
            **dict.fromkeys(("num_parameters", "seed"), "Int64"),
            **dict.fromkeys(("beta", "epoch_fraction", *METRICS), "float64"),
            "examples_seen": "int64",
        }
    )
    order = ["objective", "model", "beta", "seed", "examples_seen", "run_id"]
    return table.sort_values(order, ignore_index=True)


def _align_runs(client: Any, tracking_uri: str, experiment: str | None, parent_run_id: str | None) -> list[Any]:
    """All align runs, those of each stage newest first."""
    experiments = _pages(lambda token: client.search_experiments(page_token=token))
    if experiment is not None:
        names = ", ".join(sorted(found.name for found in experiments)) or "none"
        experiments = [found for found in experiments if found.name == experiment]
        if not experiments:
            raise ValueError(f"no experiment {experiment!r} in {shown_uri(tracking_uri)}; it has {names}")
    conditions = []
    if parent_run_id is not None:
        if not re.fullmatch(r"[\w-]+", parent_run_id):
            raise ValueError(f"{parent_run_id!r} is not a run id")
        conditions.append(f"tags.`{PARENT_TAG}` = '{parent_run_id}'")
    ids = [found.experiment_id for found in experiments]
    runs: list[Any] = []
    for stage in _STAGES:  # the store's filters know no "or"
        text = " and ".join([f"tags.`{STAGE_TAG}` = '{stage}'", *conditions])
        runs += _pages(partial(_found, client, ids, text))
    if not runs:
        raise ValueError(
            f"{shown_uri(tracking_uri)} has no align run{_within(experiment, parent_run_id)}; "
            "train policies with tracking to this store first, or name another store"
        )
    return runs


def _found(client: Any, experiment_ids: list[str], conditions: str, token: str | None) -> Any:
    return client.search_runs(experiment_ids, conditions, order_by=["start_time DESC"], page_token=token)


def _pages(page: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        more = page(token)
        found += more
        token = more.token
        if not token:
            return found


def _countable(runs: list[Any], unfinished: bool) -> tuple[list[Any], list[str]]:
    """The newest finished run of each cell, oldest cells last, and what was passed over."""
    notes = []
    if not unfinished:
        others = [run.info.status for run in runs if run.info.status != "FINISHED"]
        reasons = [
            f"{run.info.run_name} failed for good: {run.data.tags[FAILURE_TAG]}"
            for run in runs
            if run.info.status == "FAILED" and FAILURE_TAG in run.data.tags
        ]
        runs = [run for run in runs if run.info.status == "FINISHED"]
        counts = ", ".join(f"{others.count(status)} {status.lower()}" for status in sorted(set(others)))
        if others:
            notes.append(f"{len(others)} align run(s) left out because they did not finish: {counts}")
        notes += reasons
    kept: dict[tuple[object, ...], dict[tuple[object, ...], Any]] = {}
    data_of: dict[tuple[str, str], set[str]] = {}
    for run in sorted(runs, key=lambda run: (-run.info.start_time, run.info.run_id)):
        missing = [name for name in ("objective", "model", "beta") if name not in run.data.params]
        if missing or _number(run, "beta") is None:
            lacking = f"no parameter {', '.join(missing)}" if missing else "its beta is not a number"
            notes.append(f"run {run.info.run_id}: left out, {lacking}")
            continue
        identity = _identity(run)
        data = run.data.params.get("data_fingerprint", "")
        cell = (*(identity[name] for name in ("objective", "model", "beta", "seed")), data)
        settings = {name: run.data.params.get(name) for name in UNNAMED_SETTINGS}
        of_cell = kept.setdefault(cell, {})
        if (key := tuple(settings.values())) in of_cell:
            notes.append(
                f"{_cell_name(run)}: run {run.info.run_id} left out, "
                f"{of_cell[key].info.run_id} is a newer run of the same cell"
            )
            continue
        notes += [
            f"{_cell_name(run)}: runs {run.info.run_id} and {other.info.run_id} differ in "
            + ", ".join(name for name in settings if settings[name] != other.data.params.get(name))
            + "; both are points of one curve: read one experiment or study at a time"
            for other in of_cell.values()
        ]
        of_cell[key] = run
        data_of.setdefault((str(identity["objective"]), str(identity["model"])), set()).add(data)
    notes += [
        f"{objective}, {model}: its runs were trained on {len(data)} different data sets; "
        "read one experiment or study at a time"
        for (objective, model), data in sorted(data_of.items())
        if len(data) > 1
    ]
    return [run for of_cell in kept.values() for run in of_cell.values()], notes


def _histories(client: Any, runs: list[Any]) -> tuple[list[dict[int, dict[str, float]]], list[str]]:
    """For each run: step -> metric -> value, over evaluated steps; and notes."""
    wanted = [(run.info.run_id, name) for run in runs for name in METRICS if f"eval/{name}" in run.data.metrics]
    # One request a run and metric: the client has no call for all of a run's histories. Threads hide a
    # server's latency.
    with ThreadPoolExecutor(max_workers=8) as workers:
        answers = list(workers.map(lambda key: client.get_metric_history(key[0], f"eval/{key[1]}"), wanted))
    histories: dict[str, dict[int, dict[str, float]]] = {run.info.run_id: {} for run in runs}
    ambiguous: dict[str, set[int]] = {}
    for (run_id, name), history in zip(wanted, answers, strict=True):
        # An evaluation that is repeated logs a step twice: the later value stands.
        newest: dict[int, Any] = {}
        for metric in sorted(history, key=lambda metric: metric.timestamp):
            earlier = newest.get(metric.step)
            if earlier and earlier.timestamp == metric.timestamp and earlier.value != metric.value:
                ambiguous.setdefault(run_id, set()).add(metric.step)
            newest[metric.step] = metric
        for step, metric in newest.items():
            histories[run_id].setdefault(step, {})[name] = metric.value
    notes = [
        f"run {run_id}: {len(steps)} checkpoint(s) logged twice at one time with different values; "
        "one of the two was taken: evaluate again"
        for run_id, steps in sorted(ambiguous.items())
    ]
    return [
        {step: metrics for step, metrics in history.items() if _EVALUATED_BY & metrics.keys()}
        for history in histories.values()
    ], notes


def _identity(run: Any) -> dict[str, object]:
    params = run.data.params
    objective = params["objective"]
    if price := _number(run, "length_penalty"):
        objective += f", length penalty {price:g}"
    if share := _number(run, "label_smoothing"):
        objective += f", {params.get('smoothing', '')} label smoothing {share:g}".replace("  ", " ")
    objective += _mitigations(run)
    if params.get("kl") == "penalty":
        objective += ", KL as a penalty"
    # A tag of a study's runs, which says more of their reward models than that they are several.
    if proxy := run.data.tags.get(PROXY_TAG):
        objective += f", {proxy}"
    elif (models := int(_number(run, "reward_models") or 1)) > 1:
        price = _number(run, "disagreement_price") or 0.0
        objective += f", {ensemble_label(params['reward_combination'], price, models)}"
    # A tag of those runs alone whose learning rate is what a study varies.
    if rate := run.data.tags.get("overopt.learning_rate"):
        objective += f", learning rate {float(rate):g}"
    integers = {
        name: None if (value := _number(run, name)) is None else int(value) for name in ("num_parameters", "seed")
    }
    return {
        "run_id": run.info.run_id,
        "objective": objective,
        "model": params["model"],
        "num_parameters": integers["num_parameters"],
        "beta": _number(run, "beta"),
        "seed": integers["seed"],
    }


def _mitigations(run: Any) -> str:
    """What a run has beside its objective, as a study's curves are told apart by; runs without have no such record."""
    params, parts = run.data.params, []
    if weight := _number(run, "nll_weight"):
        parts.append(f"NLL {weight:g} per {params.get('nll_per', 'token')}")
    if link := params.get("link"):
        parts.append(f"{link} link")
    if reward := _number(run, "max_reward"):
        parts.append(f"rewards up to {reward:g}")
    if price := _number(run, "positive_penalty"):
        parts.append(f"positive penalty {price:g}")
    if updates := params.get("moving_reference"):
        parts.append(f"reference moving {updates}")
    # A tag of cells with several rounds; their own reference is told by another.
    if int(rounds := run.data.tags.get("overopt.rounds", "1")) > 1:
        labels = " by proxy labels" if run.data.tags.get("overopt.round_labels") == "proxy" else ""
        reference = run.data.tags.get("overopt.round_reference", "first")
        parts.append(f"round {rounds}{labels} from the {reference} reference")
    return "".join(f", {part}" for part in parts)


def _number(run: Any, name: str) -> float | None:
    try:
        value = float(run.data.params[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _cell_name(run: Any) -> str:
    identity = _identity(run)
    return (
        ", ".join(f"{identity[name]}" for name in ("objective", "model"))
        + ", "
        + ", ".join(f"{name} {identity[name]}" for name in ("beta", "seed"))
    )


def _within(experiment: str | None, parent_run_id: str | None) -> str:
    where = [
        f"experiment {experiment!r}" if experiment is not None else "",
        f"children of run {parent_run_id}" if parent_run_id is not None else "",
    ]
    return "".join(f" in {place}" for place in where if place)


def _require_current_schema(tracking_uri: str) -> None:
    """Refuse what MLflow would create, migrate or wait minutes for: a reader does none of these."""
    path = sqlite_path(tracking_uri)
    if path is not None and not path.is_file():
        return  # for open_store to say
    if "://" not in tracking_uri or re.match(r"https?:|file:|databricks|uc:", tracking_uri):
        return
    if tracking_uri.startswith("sqlite") and path is None:
        raise ValueError(f"{tracking_uri} is not a store that could be read; name one: sqlite:///FOLDER/mlflow.db")
    import sqlalchemy
    from mlflow.store.db.utils import _get_latest_schema_revision

    try:
        engine = sqlalchemy.create_engine(tracking_uri)
        with engine.connect() as connection:
            found = (
                connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
                if {"alembic_version", "experiments"} <= set(sqlalchemy.inspect(engine).get_table_names())
                else None
            )
        engine.dispose()
    except ImportError as problem:
        raise ValueError(f"cannot open {shown_uri(tracking_uri)}: {problem}; install that driver") from problem
    except sqlalchemy.exc.SQLAlchemyError as problem:
        raise ValueError(f"cannot open {shown_uri(tracking_uri)}: {_first_line(problem)}") from problem
    if found is None:
        raise ValueError(f"{shown_uri(tracking_uri)} is a database but not an MLflow store; name the store itself")
    if found != (expected := _get_latest_schema_revision()):
        import mlflow

        raise ValueError(
            f"{shown_uri(tracking_uri)} has schema {found}, MLflow {mlflow.__version__} reads {expected}: back it up "
            f"and run 'mlflow db upgrade {shown_uri(tracking_uri)}', or install the MLflow that wrote it"
        )


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
