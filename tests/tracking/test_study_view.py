import json

from overopt.tracking.runs import PARENT_TAG, log_metrics, start_run
from overopt.tracking.study_view import keep_study_view


def test_the_link_of_a_study_leads_to_a_view_of_its_trained_policies_alone(client):
    study, other = start_run(client, "grid", "study"), start_run(client, "other", "study")
    worse = start_run(client, "worse", "align", tags={PARENT_TAG: study})
    better = start_run(client, "better", "align", tags={PARENT_TAG: study})
    start_run(client, "sft", "sft", tags={PARENT_TAG: study})
    start_run(client, "elsewhere", "align", tags={PARENT_TAG: other})
    log_metrics(client, worse, {"eval/win_rate": 0.4}, step=0)
    log_metrics(client, better, {"eval/win_rate": 0.6}, step=0)

    command, link = keep_study_view(client, study)

    experiment = client.get_run(study).info.experiment_id
    assert command == f"mlflow ui --backend-store-uri {client.tracking_uri}"
    assert link.endswith(f"/#/experiments/{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={study}")
    kept = client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{study}"]
    assert len(kept) < 5000  # MLflow's limit
    view = json.loads(kept)
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    found = client.search_runs([experiment], view["searchFilter"], order_by=[order])
    assert [run.info.run_id for run in found] == [better, worse]
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == sections


def test_views_of_two_studies_stand_beside_each_other(client):
    studies = [start_run(client, name, "study") for name in ("first", "second")]
    links = {keep_study_view(client, study)[-1] for study in studies}
    tags = client.get_experiment(client.get_run(studies[0]).info.experiment_id).tags
    assert len(links) == 2
    assert {f"mlflow.sharedViewState.{study}" for study in studies} <= tags.keys()
