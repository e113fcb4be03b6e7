"""Stage ``report``: tracked runs to points, fits, figures and the page. No model is opened."""

import tempfile
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from overopt.analysis.laws.curves import R0Setting
from overopt.analysis.page.report import ReportPaths, format_fits, write_report
from overopt.analysis.page.tables import RunPages
from overopt.evaluation.records import read_completions
from overopt.tracking.best_of_n_points import read_best_of_n
from overopt.tracking.provenance import command_line, provenance
from overopt.tracking.runs import log_artifact
from overopt.tracking.store import open_store, resolve_tracking_uri, shown_uri
from overopt.tracking.tables import read_points
from overopt.tracking.ui import tracking_ui

COMPLETIONS = "completions"


def report_from_store(
    out: Path,
    experiment: str | None = None,
    study: str | None = None,
    tracking_uri: str | None = None,
    r0: R0Setting = "measured",
    errors_in_d: bool = False,
) -> ReportPaths:
    """Write the report on a store's runs, keep it with the study's run, and print the fits and where the page is.

    Args:
        out: folder to write.
        experiment: name of the MLflow experiment; all by default.
        study: id of the parent run whose children are reported; all by default.
        tracking_uri: as in :func:`overopt.tracking.store.resolve_tracking_uri`.
        r0: win rate at d = 0; see :func:`overopt.analysis.study.analyse`.
        errors_in_d: add fits by orthogonal distance regression to intervals.csv.

    Raises:
        ValueError: no store there, or no evaluated run in it.
    """
    uri = resolve_tracking_uri(tracking_uri)
    client = open_store(uri, create=False)
    points = read_points(uri, experiment=experiment, parent_run_id=study)
    best_of_n = read_best_of_n(uri, experiment=experiment, parent_run_id=study)
    run_ids = points.table["run_id"].unique().tolist()
    paths = write_report(
        points.table,
        out,
        notes=points.notes + best_of_n.notes,
        provenance={"command": shown_uri(command_line()), "tracking store": shown_uri(uri), **provenance()},
        completions=tracked_completions(client, run_ids),
        best_of_n=best_of_n.table,
        runs=run_pages(client, run_ids),
        r0=r0,
        errors_in_d=errors_in_d,
    )
    if study is not None:
        keep_report(client, study, paths)
    print(format_fits(pd.read_csv(paths.tables["fits"])))
    print(f"report:        {paths.html}")
    return paths


def keep_report(client: MlflowClient, run_id: str, report: ReportPaths) -> None:
    """Log a report's files as artifacts of a run, a study's parent."""
    folder = report.html.parent
    for path in [*report.figures, *report.tables.values(), report.html]:
        log_artifact(client, run_id, path, str(Path("report") / path.parent.relative_to(folder)))


def run_pages(client: MlflowClient, run_ids: list[str]) -> RunPages:
    """What the store calls its runs, and where MLflow's UI shows them."""
    ui = tracking_ui(client.tracking_uri)
    runs = [client.get_run(run_id).info for run_id in run_ids]
    return RunPages(
        names={run.run_id: run.run_name or run.run_id[:8] for run in runs},
        urls={run.run_id: ui.run(run.experiment_id, run.run_id) for run in runs},
        command=ui.command,
    )


def tracked_completions(client: MlflowClient, run_ids: list[str]) -> pd.DataFrame:
    """The kept completions of runs: run_id, examples_seen and the fields of each line; empty without any."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for run_id in run_ids:
            if not client.list_artifacts(run_id, COMPLETIONS):
                continue
            for file in sorted(Path(client.download_artifacts(run_id, COMPLETIONS, folder)).glob("examples-*.jsonl")):
                seen = int(file.stem.removeprefix("examples-"))
                for completion in read_completions(file):
                    row = {**vars(completion), "response_tokens": completion.response_tokens}
                    del row["token_ids"]
                    rows.append({"run_id": run_id, "examples_seen": seen, **row})
                file.unlink()
    return pd.DataFrame(rows)
