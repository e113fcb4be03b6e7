import sys
from pathlib import Path

import pandas as pd
import pytest

from overopt.analysis.store_report import report_from_store
from overopt.tracking.runs import PARENT_TAG, PROXY_TAG, log_metrics, log_params, start_run
from overopt.tracking.store import open_store


def test_a_local_stores_runs_link_to_the_ui_that_the_page_says_how_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setattr(sys, "argv", ["overopt", "report", "--tracking-uri", "postgresql://me:secret@host/runs"])
    client = open_store(uri, create=True)
    run_id = start_run(client, "dpo at beta 0.1", "align")
    log_params(client, run_id, {"objective": "dpo", "model": "tiny", "beta": 0.1, "seed": 0})
    for seen, kl, win_rate in ((0, 0.0, 0.4), (100, 4.0, 0.6)):
        log_metrics(client, run_id, {"eval/kl_nats": kl, "eval/win_rate": win_rate}, step=seen)
    client.set_terminated(run_id, "FINISHED")

    page = report_from_store(tmp_path / "report", tracking_uri=uri).html.read_text(encoding="utf-8")

    ids = f"{client.get_run(run_id).info.experiment_id}/runs/{run_id}"
    assert f'<a href="http://127.0.0.1:5000/#/experiments/{ids}" target="_blank"' in page
    assert "dpo at beta 0.1" in page
    assert f"<code>mlflow ui --backend-store-uri {uri}</code>" in page
    assert "postgresql://me:***@host/runs" in page
    assert "secret" not in page


def test_a_studys_report_is_kept_with_its_run(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri, create=True)
    study = start_run(client, "grid", "study")
    for beta in (0.1, 0.2, 0.5):
        run_id = start_run(client, f"dpo at beta {beta}", "align", tags={PARENT_TAG: study})
        log_params(client, run_id, {"objective": "dpo", "model": "tiny", "beta": beta, "seed": 0})
        for seen, kl, win_rate in ((0, 0.0, 0.4), (100, 1 / beta, 0.6), (200, 2 / beta, 0.5)):
            log_metrics(client, run_id, {"eval/kl_nats": kl, "eval/win_rate": win_rate}, step=seen)
        client.set_terminated(run_id, "FINISHED")

    report_from_store(tmp_path / "report", study=study, tracking_uri=uri)

    kept = {file.path for file in client.list_artifacts(study, "report")}
    assert {"report/report.html", "report/fits.csv", "report/claims.csv", "report/figures"} <= kept
    figures = {file.path for file in client.list_artifacts(study, "report/figures")}
    assert "report/figures/fig01_win_rate_vs_kl.svg" in figures


def test_best_of_n_of_the_same_study_stands_beside_its_policies(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri, create=True)
    studies = [start_run(client, name, "study") for name in ("grid", "other")]
    for study, proxy in zip(studies, ("proxy 1M", "proxy 9M"), strict=True):
        for beta in (0.1, 0.2, 0.5):
            run_id = start_run(client, f"dpo at beta {beta}", "align", tags={PARENT_TAG: study})
            log_params(client, run_id, {"objective": "dpo", "model": "tiny", "beta": beta, "seed": 0})
            for seen, kl, win_rate in ((0, 0.0, 0.4), (100, 1 / beta, 0.6), (200, 2 / beta, 0.5)):
                log_metrics(client, run_id, {"eval/kl_nats": kl, "eval/win_rate": win_rate}, step=seen)
            client.set_terminated(run_id, "FINISHED")
        run_id = start_run(client, "best of n", "best_of_n", tags={PARENT_TAG: study, PROXY_TAG: proxy})
        params = {"model": "tiny", "num_parameters": 10, "seed": 0, "combine": "mean", "reward_models": 1}
        log_params(client, run_id, params)
        for n in (1, 2, 4, 8, 16):
            log_metrics(client, run_id, {"eval/kl_nats": n / 10 - 0.1, "eval/win_rate": 0.4 + n / 100}, step=n)
        client.set_terminated(run_id, "FINISHED")

    paths = report_from_store(tmp_path / "report", study=studies[0], tracking_uri=uri)
    assert set(pd.read_csv(paths.tables["best_of_n"])["objective"]) == {"best of n, proxy 1M"}
    assert set(pd.read_csv(paths.tables["methods"])["method"]) == {"dpo", "best of n, proxy 1M"}
    assert "9M" not in paths.html.read_text(encoding="utf-8")
    everything = report_from_store(tmp_path / "all", tracking_uri=uri)
    assert len(pd.read_csv(everything.tables["best_of_n"])) == 10
