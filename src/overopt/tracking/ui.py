"""MLflow's UI: where it shows a store's runs, and the command that serves it."""

import shlex
from typing import NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from overopt.tracking.store import shown_uri

_LOCAL = "http://127.0.0.1:5000"  # what `mlflow ui` serves unless told otherwise


class TrackingUI(NamedTuple):
    """The pages of a store.

    Attributes:
        url: where they begin, without a slash at the end.
        command: what to type before they are there; ``None`` for a server, which serves them itself.
    """

    url: str
    command: str | None

    def experiment(self, experiment_id: str) -> str:
        """The page of an experiment."""
        return f"{self.url}/#/experiments/{quote(experiment_id, safe='')}"

    def run(self, experiment_id: str, run_id: str) -> str:
        """The page of a run."""
        return f"{self.experiment(experiment_id)}/runs/{quote(run_id, safe='')}"


def tracking_ui(tracking_uri: str) -> TrackingUI:
    """Where a store is looked at.

    A server's links name no user, since a user without the password would be refused: the browser asks.

    >>> tracking_ui("https://me:secret@host/mlflow/").run("1", "abc")
    'https://host/mlflow/#/experiments/1/runs/abc'
    >>> tracking_ui("sqlite:///mlruns/mlflow.db")
    TrackingUI(url='http://127.0.0.1:5000', command='mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db')
    """
    parts = urlsplit(tracking_uri)
    if parts.scheme in ("http", "https"):
        host = parts.netloc.rpartition("@")[2]
        return TrackingUI(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), None)
    return TrackingUI(_LOCAL, f"mlflow ui --backend-store-uri {shlex.quote(shown_uri(tracking_uri))}")
