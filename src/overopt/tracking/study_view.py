"""A study in MLflow's UI: its runs side by side, win rate and KL first, behind one link."""

import json

from mlflow import MlflowClient

from overopt.tracking.runs import PARENT_TAG, STAGE_TAG
from overopt.tracking.ui import tracking_ui

# Where MLflow's UI (tried with 3.17) looks up the view of a link that ends in viewStateShareKey=KEY.
_VIEW_TAG = "mlflow.sharedViewState."
_SECTION = "Over-optimization"
# (metric, the metric on the horizontal axis; examples seen without one)
_CHARTS = (
    ("eval/win_rate", "eval/kl_nats"),
    ("eval/win_rate", None),
    ("eval/kl_nats", None),
    ("eval/response_tokens", None),
)


def keep_study_view(client: MlflowClient, study: str) -> list[str]:
    """Keep a view of the study's trained policies with its experiment.

    Args:
        client: of the store.
        study: id of the study's run.

    Returns:
        What to type, or to open, in order.
    """
    experiment = client.get_run(study).info.experiment_id
    client.set_experiment_tag(experiment, _VIEW_TAG + study, json.dumps(_view(study)))
    ui = tracking_ui(client.tracking_uri)
    page = f"{ui.experiment(experiment)}/runs?compareRunsMode=CHART&viewStateShareKey={study}"
    return [page] if ui.command is None else [ui.command, page]


def _view(study: str) -> dict[str, object]:
    """The state of the page of runs.

    MLflow folds a study's runs under it, out of every chart's sight, unless runs are both filtered and sorted.
    """
    return {
        "searchFilter": f"tags.`{PARENT_TAG}` = '{study}' AND tags.`{STAGE_TAG}` = 'align'",
        "orderByKey": "metrics.`eval/win_rate`",
        "orderByAsc": False,
        "selectedColumns": [
            "params.`objective`",
            "params.`beta`",
            "params.`num_parameters`",
            "metrics.`eval/win_rate`",
            "metrics.`eval/kl_nats`",
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [{"uuid": _SECTION, "name": _SECTION, "display": True, "deleted": False}],
        "compareRunCharts": [_chart(metric, over) for metric, over in _CHARTS],
        "isAccordionReordered": True,  # the other metrics' sections come after this one
    }


def _chart(metric: str, over: str | None) -> dict[str, object]:
    return {
        "uuid": f"{metric} over {over}",
        "type": "LINE",
        "metricSectionId": _SECTION,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "yAxisKey": "metric",
        "xAxisKey": "step" if over is None else "metric",
        "selectedXAxisMetricKey": over or "",
        "useGlobalXaxisKey": False,
        "lineSmoothness": 0,
        "displayPoints": True,
        "deleted": False,
        "isGenerated": False,
    }
