import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from overopt.analysis.laws.fit_tables import fit_points
from overopt.analysis.page.page import inline_svg
from overopt.analysis.page.report import ReportPaths, format_fits, write_report
from overopt.analysis.page.tables import RunPages

PROVENANCE = {"command": "python -m overopt report", "commit": "0123abc"}


_UNREAD = ("style", "script", "svg")


class Page(HTMLParser):
    """Tags with their attributes, the text outside of style, scripts and figures, and the scripts' own."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._skipped = 0
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skipped += tag in _UNREAD

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in _UNREAD

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif not self._skipped:
            self.words.append(data)


def completions_of(points: pd.DataFrame, response: str = " Sorts an array.") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run_id": point["run_id"],
                "examples_seen": point["examples_seen"],
                "prompt_id": f"prompt-{number}",
                "prompt": f"NAME: numpy.sort{number}",
                "response": response,
                "opponent": " Return a sorted copy of an array.",
                "win_probability": 0.25,
            }
            for point in points.to_dict("records")
            for number in range(6)
        ]
    )


class Written(NamedTuple):
    """One report, made once, for tests that only look."""

    points: pd.DataFrame
    paths: ReportPaths
    html: str
    page: Page


@pytest.fixture(scope="module")
def written(make_points, tmp_path_factory: pytest.TempPathFactory) -> Written:
    points = make_points()
    completions = completions_of(points)
    completions["response"] = " from " + completions["run_id"] + " at " + completions["examples_seen"].astype(str)
    paths = write_report(points, tmp_path_factory.mktemp("report"), provenance=PROVENANCE, completions=completions)
    html = paths.html.read_text(encoding="utf-8")
    return Written(points, paths, html, Page(html))


def test_the_report_opens_with_the_answer_and_says_how_sure_it_is(make_points, tmp_path: Path) -> None:
    points = make_points(("dpo", "ipo"), noise=0.005)
    paths = write_report(points, tmp_path, notes=["1 align run(s) left out"], provenance=PROVENANCE, num_prompts=512)
    page = Page(paths.html.read_text(encoding="utf-8"))
    opening = page.text[:1500]
    assert "Win rate rises from 0.42 to 0.6" in opening
    assert "over-optimization starts at KL ≈" in opening
    assert "A win rate over 512 prompts carries a 95% half-width of ± 4.3 points" in page.text
    for told in (
        "1 align run(s) left out",
        "is left out: one model only",
        "is left out: no run with a length penalty",
        "python -m overopt report",
        "0123abc",
        "independent",
    ):
        assert told in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 4
    assert sum(tag == "tr" for tag, _ in page.tags) > len(points)


def test_the_tables_are_written_with_the_contracts_columns(written: Written) -> None:
    points, paths = written.points, written.paths
    table = pd.read_csv(paths.tables["points"])
    assert list(table.columns) == list(points.columns)
    np.testing.assert_allclose(table["kl_nats"], points["kl_nats"], rtol=1e-9)
    fits = pd.read_csv(paths.tables["fits"])
    assert list(fits.columns[:6]) == ["objective", "model", "axis", "points", "law", "r0"]
    assert {"alpha", "alpha_low", "alpha_high", "rmse", "rmse_leave_one_beta_out", "aicc", "d_star", "peak"} <= set(
        fits.columns
    )
    names = {path.name for path in paths.figures}
    assert {"fig01_win_rate_vs_kl.svg", "fig01_win_rate_vs_kl.png", "fig02_training_dynamics.svg"} <= names
    assert all(path.stat().st_size > 5_000 for path in paths.figures)


def test_the_same_points_give_the_same_files_and_nothing_else_is_left(make_points, tmp_path: Path) -> None:
    points = make_points()
    files = []
    for name in ("one", "other"):
        write_report(points, tmp_path / name, provenance=PROVENANCE, completions=completions_of(points))
        folder = tmp_path / name
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert files[0] == files[1]
    tables = {f"{name}.csv" for name in ("points", "fits", "intervals", "falls", "law_comparison", "claims")}
    assert tables <= files[0].keys()
    assert len(files[0]) == 1 + 12 + 6  # the page, tables, three figures
    assert not any(Path(name).name.startswith(".") for name in files[0])


def test_the_page_asks_no_network_for_anything(written: Written) -> None:
    page = written.page
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert links  # the figures' own references, all inside the page
    assert all(link and link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", written.html)
    assert {"link", "iframe", "object", "img"}.isdisjoint(tag for tag, _ in page.tags)
    policy = dict(next(a for t, a in page.tags if t == "meta" and "http-equiv" in a))
    assert str(policy["content"]).startswith("default-src 'none'; script-src 'sha256-")


def test_the_page_runs_one_script_which_its_policy_names_by_hash(written: Written) -> None:
    data, script = written.page.scripts
    policy = next(str(a["content"]) for t, a in written.page.tags if t == "meta" and "http-equiv" in a)
    allowed = re.findall(r"script-src ([^;]*)", policy)
    assert allowed == [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"]
    assert set(json.loads(data)) == {"runs", "checkpoints"}


def test_headings_go_down_one_level_at_a_time(written: Written) -> None:
    levels = [int(tag[1]) for tag, _ in written.page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))


def test_the_contents_lead_to_every_section(written: Written) -> None:
    ids = {attributes.get("id") for _, attributes in written.page.tags}
    contents = {str(a["href"])[1:] for t, a in written.page.tags if t == "a"}
    sections = {a["id"] for t, a in written.page.tags if t == "section"}
    analysis = {"advice", "claims", "falls", "laws", "fits"}
    assert {"answer", "figures", *analysis, "samples", "checkpoints", "provenance"} == sections
    assert sections <= contents <= ids


def test_the_page_tells_what_each_dot_is(written: Written) -> None:
    dots = json.loads(written.page.scripts[0])
    point = written.points.iloc[8]  # the third row of the second run
    assert dots["runs"][point["run_id"]]["facts"] == [
        ["Run", point["run_id"][:8]], ["Objective", "DPO"], ["Model", "gpt_neox-0.5M"], ["beta", "0.02"], ["Seed", "0"],
    ]  # fmt: skip
    assert dots["checkpoints"][f"{point['run_id']}:6144"] == [
        ["Checkpoint", "6,144 examples, 40% of training"],
        ["Win rate ± 95%", f"{point['win_rate']:.3f} ± 0.043"],
        ["KL ± 95% [nats]", f"{point['kl_nats']:.2f} ± {1.959964 * 0.05 * point['kl_nats']:.2f}"],
    ]


def test_runs_of_a_store_are_called_by_name_and_link_to_its_pages(make_points, tmp_path: Path) -> None:
    points = make_points(betas=(0.1,))
    run_id = points["run_id"].iloc[0]
    url = f"http://127.0.0.1:5000/#/experiments/1/runs/{run_id}"
    runs = RunPages({run_id: "dpo at 0.1"}, {run_id: url}, "mlflow ui --backend-store-uri sqlite:///mlflow.db")
    page = Page(write_report(points, tmp_path, runs=runs).html.read_text(encoding="utf-8"))
    links = [attributes for tag, attributes in page.tags if tag == "a" and not str(attributes["href"]).startswith("#")]
    assert len(links) == len(points)
    assert {(link["href"], link["target"], link["rel"]) for link in links} == {(url, "_blank", "noopener noreferrer")}
    assert json.loads(page.scripts[0])["runs"][run_id]["url"] == url
    assert "dpo at 0.1" in page.text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in page.text


def test_a_server_needs_no_command(make_points, tmp_path: Path) -> None:
    points = make_points(betas=(0.1,))
    run_id = points["run_id"].iloc[0]
    runs = RunPages({run_id: "run"}, {run_id: "https://host/#/experiments/1/runs/2"})
    page = Page(write_report(points, tmp_path, runs=runs).html.read_text(encoding="utf-8"))
    assert "open them on the tracking server" in page.text
    assert "mlflow ui" not in page.text


def test_a_checkpoint_with_two_dots_in_a_figure_has_no_id_twice() -> None:
    svg = '<svg><g id="checkpoint:abc:10"/><g id="last-checkpoint:abc:10"/><g id="axes_1"/></svg>'
    dot = '<g data-checkpoint="abc:10"/>'
    inlined = inline_svg(svg, "fig01", '"A" < B')
    assert inlined == f'<svg role="img" aria-label="&quot;A&quot; &lt; B">{dot}{dot}<g id="fig01-axes_1"/></svg>'


def test_references_inside_the_figures_find_their_target_once(written: Written) -> None:
    page = written.page
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(a["xlink:href"])[1:] for _, a in page.tags if "xlink:href" in a}
    assert targets
    assert targets <= set(ids)


def test_text_that_a_model_wrote_is_shown_and_never_run(make_points, tmp_path: Path) -> None:
    attack = "</pre><script>alert('x')</script> & $x$ --><img src=http://example.com/a.png>"
    points = make_points(("dpo", attack), (f"model {attack}",))
    paths = write_report(
        points,
        tmp_path,
        completions=completions_of(points, attack),
        notes=[attack],
        provenance={attack: attack},
    )
    page = Page(paths.html.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 2  # the page's own
    assert "<" not in page.scripts[0]
    assert page.text.count("<script>alert('x')</script>") > 10


def test_samples_show_the_lowest_the_best_and_the_highest_kl_side_by_side(written: Written) -> None:
    trained = written.points[written.points["examples_seen"] > 0]
    for index in (trained["kl_nats"].idxmin(), trained["win_rate"].idxmax(), trained["kl_nats"].idxmax()):
        chosen = trained.loc[index]
        assert f"from {chosen['run_id']} at {chosen['examples_seen']}" in written.page.text
    assert "6 prompts" in written.page.text  # counted, since nobody said how many


def test_several_methods_have_a_section_with_their_figure_and_best_of_n_enters_nothing_else(
    make_methods, make_best_of_n, tmp_path: Path
) -> None:
    points, best_of_n = make_methods(), make_best_of_n()
    paths = write_report(points, tmp_path / "with", best_of_n=best_of_n)
    page = Page(paths.html.read_text(encoding="utf-8"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"by-method", "methods", "methods-win-rate", "methods-gold-reward", "method-effects-win-rate"} <= ids
    assert "The proxy still rises while quality falls, beyond what seeds differ by: DPO; IPO;" in page.text
    assert "best of n, proxy 0.4M on 256 pairs" in page.text
    assert tmp_path / "with" / "figures" / "methods.svg" in paths.figures
    table = pd.read_csv(paths.tables["methods"])
    assert table["method"].nunique() == points["objective"].nunique() + 1
    assert len(pd.read_csv(paths.tables["best_of_n"])) == len(best_of_n)
    alone = write_report(points, tmp_path / "without")
    for name in set(alone.tables) - {"methods", "method_effects"}:
        assert alone.tables[name].read_bytes() == paths.tables[name].read_bytes(), name
    assert "best of n" not in alone.html.read_text(encoding="utf-8")


def test_one_method_has_no_such_section(written: Written) -> None:
    assert "by-method" not in {attributes.get("id") for _, attributes in written.page.tags}
    assert "is left out: no model was aligned by more than one method" in written.page.text
    assert len(pd.read_csv(written.paths.tables["methods"])) == 1
    assert pd.read_csv(written.paths.tables["method_effects"]).empty


def test_one_beta_gives_a_report_without_curves_that_says_why(make_points, tmp_path: Path) -> None:
    page = Page(write_report(make_points(betas=(0.1,)), tmp_path).html.read_text(encoding="utf-8"))
    assert "not fitted: 1 distinct beta, 3 needed" in page.text
    assert "No curve could be fitted" in page.text


def test_points_without_an_evaluated_policy_are_refused(make_points, tmp_path: Path) -> None:
    points = make_points()
    with pytest.raises(ValueError, match="evaluate checkpoints with a judge first"):
        write_report(points[points["examples_seen"] == 0], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_table_read_back_from_points_csv_gives_the_same_fits(written: Written) -> None:
    again = fit_points(pd.read_csv(written.paths.tables["points"])).table
    pd.testing.assert_frame_equal(again, fit_points(written.points).table, rtol=1e-6)


def test_fits_as_text_have_a_line_for_each_law(make_points) -> None:
    fits = fit_points(make_points()).table
    lines = format_fits(fits).splitlines()
    assert len(lines) == 2 + 8
    assert "log_law" in lines[2]
    assert "alpha 0.1" in lines[2]
    assert format_fits(fits.iloc[:0]) == "no curve could be fitted"
