"""From nothing to an over-optimization curve, by the embedded default's recipe (SPEC: docstrings, gold judge)."""

from collections.abc import Sequence
from pathlib import Path

from overopt.analysis.store_report import report_from_store
from overopt.embedded.cells import Cell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.embedded.recipe import Recipe
from overopt.tracking.runs import find_run, finishing, start_run
from overopt.tracking.store import open_store, resolve_tracking_uri
from overopt.tracking.study_view import keep_study_view
from overopt.trainers import quiet_lightning


def run_quickstart(
    objectives: Sequence[str],
    betas: Sequence[float] | None,
    seeds: Sequence[int],
    sizes: Sequence[str],
    out: Path,
    tracking_uri: str | None,
    recipe: Recipe = Recipe(),
) -> Path:
    """Stage ``quickstart``; see :func:`overopt.stages.quickstart`.

    Returns:
        The path of report.html.

    Raises:
        ValueError: an unknown objective or size, a bad beta, or a store that can't be reached; before any work.
    """
    cells = [
        Cell(objective, beta, size, seed)
        for size in sizes
        for seed in seeds
        for objective in objectives
        for beta in betas or recipe.betas
    ]
    quiet_lightning()
    client = open_store(tracking_uri, create=True)
    uri = resolve_tracking_uri(tracking_uri)
    tags = {"overopt.quickstart": str(out.resolve())}
    study = find_run(client, tags) or start_run(client, "quickstart", "study", tags=tags)
    with finishing(client, study):
        for task in plan(EmbeddedExperiment(out, uri, study, recipe), cells).values():
            task.run()
        report = report_from_store(out / "report", study=study, tracking_uri=uri)
    for line in keep_study_view(client, study):
        print(f"compare runs:  {line}")
    return report.html
