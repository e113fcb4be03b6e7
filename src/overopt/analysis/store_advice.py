"""Stage ``advise``: tracked runs to advice. No model is opened."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt.analysis.advice.advice_text import Item, as_json, as_markdown, as_text
from overopt.analysis.advice.advising import Advice, Advices, Wishes, advise
from overopt.analysis.store_report import tracked_completions
from overopt.checkpoints.checkpoint_names import checkpoint_path
from overopt.checkpoints.whole_file import whole_file
from overopt.tracking.runs import CHECKPOINTS_TAG
from overopt.tracking.store import open_store, resolve_tracking_uri
from overopt.tracking.tables import Points, read_points


@dataclass(frozen=True)
class Filter:
    """Which part of a store advice is wanted on.

    Attributes:
        experiment: name of the MLflow experiment; all by default.
        study: id of the parent run; all runs by default.
        objectives: as in the points table; all by default.
        models: likewise.
        unfinished: count runs that still go on, or did not end well.
    """

    experiment: str | None = None
    study: str | None = None
    objectives: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    unfinished: bool = False


def advise_from_store(wanted: Filter, wishes: Wishes, tracking_uri: str | None, out: Path | None) -> Advices:
    """Advise on a store's runs, print it, and write it where a file is named.

    Raises:
        ValueError: no store, nothing in it to advise on, or a file of another kind than .json or .md.
    """
    if out is not None and out.suffix not in (".json", ".md"):
        raise ValueError(f"--out {out}: advice is written as .json or as .md, name such a file")
    uri = resolve_tracking_uri(tracking_uri)
    client = open_store(uri, create=False)
    points = _selected(
        read_points(uri, experiment=wanted.experiment, parent_run_id=wanted.study, unfinished=wanted.unfinished), wanted
    )
    run_ids = points.table["run_id"].unique().tolist()
    if sys.stderr.isatty():
        print(f"reading the completions of {len(run_ids)} runs", file=sys.stderr)
    runs = {run_id: client.get_run(run_id) for run_id in run_ids}
    found = advise(
        points.table,
        tracked_completions(client, run_ids),
        wishes=wishes,
        started={run_id: float(run.info.start_time) for run_id, run in runs.items()},
    )
    found = found._replace(notes=(*points.notes, *found.notes))
    names = {run_id: f"{run.info.run_name or 'run'} ({run_id[:8]})" for run_id, run in runs.items()}
    places = {advice.name: _whereabouts(advice, runs) for advice in found.given}
    print(as_text(found, names.__getitem__, places))
    for note in found.notes:
        print(f"note: {note}")
    if out is not None:
        text = as_json(found, places) if out.suffix == ".json" else as_markdown(found, names.__getitem__, places)
        with whole_file(out) as file:
            file.write(text.encode())
        print(f"written to {out}")
    return found


def _selected(points: Points, wanted: Filter) -> Points:
    """Those of the wanted objectives and models.

    Raises:
        ValueError: one of them is not in the store.
    """
    table = points.table
    for column, names in (("objective", wanted.objectives), ("model", wanted.models)):
        found = sorted(table[column].unique())
        if unknown := [name for name in names if name not in found]:
            raise ValueError(f"no evaluated run has the {column} {unknown[0]!r}; there are {', '.join(found)}")
        if names:
            table = table[table[column].isin(names)]
    if not len(table):
        both = f"{', '.join(wanted.objectives)} with {', '.join(wanted.models)}"
        raise ValueError(f"no evaluated run has {both}: name a pair that the store has")
    return points._replace(table=table.reset_index(drop=True))


def _whereabouts(advice: Advice, runs: Mapping[str, Any]) -> list[Item]:
    """Run and file of what is to be shipped, as far as the store knows them."""
    if advice.ship is None:
        [run_id, *_] = [run.newest.run_id for run in advice.runs]
        reference = runs[run_id].data.params.get("reference")
        return [] if reference is None else [Item("file", reference)]
    run_id, seen = advice.ship.run_id, advice.ship.examples_seen
    folder = runs[run_id].data.tags.get(CHECKPOINTS_TAG)
    path = checkpoint_path(Path(folder or "."), seen)
    if folder is None:
        where = f"{path.name} of that run; the run does not record its folder"
    else:
        where = str(path) if path.is_file() else f"{path} (where it was trained; not on this machine)"
    return [Item("run", run_id), Item("file", where)]
