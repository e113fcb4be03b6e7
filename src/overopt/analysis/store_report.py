"""Tracking store -> report."""

from pathlib import Path


def report_from_store(out: Path, experiment: str | None, study: str | None, tracking_uri: str | None) -> Path:
    """Temporary."""
    from overopt.tracking.tables import read_points
    from overopt.tracking.store import resolve_tracking_uri
    points = read_points(resolve_tracking_uri(tracking_uri), experiment=experiment, parent_run_id=study)
    out.mkdir(parents=True, exist_ok=True)
    points.table.to_csv(out / "points.csv")
    print(points.table[["beta","seed","examples_seen","kl_nats","win_rate","gold_reward","loss","implicit_reward_accuracy","response_tokens"]].to_string(), points.notes)
    return out / "report.html"
