"""The page in a real browser without a window: it sorts, tells and links, and asks for nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from overopt.analysis.figures import catalogue
from overopt.analysis.page.report import write_report
from overopt.analysis.page.tables import RunPages

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver: apt-get install chromium-driver"),
]
ATTACK = (
    "</script></title><script>document.title = 'attacked'</script><img src=x onerror=\"document.title='attacked'\">"
)
UI = "http://127.0.0.1:5000/#/experiments/1/runs/"


@pytest.fixture(scope="module")
def points(make_points: Any) -> pd.DataFrame:
    points = make_points(("dpo", "ipo"), ("small", ATTACK), betas=(0.02, 0.1, 1.0))
    for number, run_id in enumerate(points["run_id"].unique()):
        points.loc[points["run_id"] == run_id, "run_id"] = f"{number:032x}"
    # One win rate is missing: it is sorted last either way.
    points.loc[5, "win_rate"] = float("nan")
    return points


def draw_dots(tables: catalogue.FigureTables) -> Figure:
    figure = Figure(figsize=(6, 4))
    ax = figure.subplots()
    for point in tables.points.to_dict("records"):
        gid = f"checkpoint:{point['run_id']}:{point['examples_seen']}"
        ax.plot([point["examples_seen"] + 500 * int(point["run_id"], 16)], [point["kl_nats"]], "o", gid=gid)
    return figure


def write(points: pd.DataFrame, folder: Path, runs: RunPages | None) -> str:
    figure = catalogue.FIGURES["fig01"]
    dots = type(figure)(**{**vars(figure), "draw": draw_dots})
    with pytest.MonkeyPatch.context() as patch:
        for name in list(catalogue.FIGURES)[1:]:
            patch.delitem(catalogue.FIGURES, name)
        patch.setitem(catalogue.FIGURES, "fig01", dots)
        page = write_report(points, folder, runs=runs, notes=[ATTACK], provenance={"command": ATTACK}).html
    return page.as_uri()


@pytest.fixture(scope="module")
def url(points: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    ids = points["run_id"].unique()
    runs = RunPages({run: f"run {int(run, 16)} {ATTACK}" for run in ids}, {run: UI + run for run in ids}, "mlflow ui")
    return write(points, tmp_path_factory.mktemp("report"), runs)


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as driver:
        driver.set_window_size(1280, 1000)
        yield driver


@pytest.fixture
def browser(driver: webdriver.Chrome, url: str) -> webdriver.Chrome:
    driver.get("about:blank")
    driver.get_log("performance")
    driver.get(url)
    return driver


def find(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    """The shown cells of the table of checkpoints."""
    script = "return [...document.querySelectorAll('#points tbody tr:not([hidden])')].map(r => r.cells[arguments[0]])"
    return [str(text) for text in browser.execute_script(f"{script}.map(c => c.textContent)", number)]


def header(browser: webdriver.Chrome, label: str) -> tuple[int, WebElement]:
    """Place and element of a header of the table of checkpoints, which is opened."""
    browser.execute_script("document.getElementById('points').closest('details').open = true")
    for number, element in enumerate(find(browser, "#points thead th")):
        if element.text.splitlines()[0] == label:
            return number, element
    raise AssertionError(label)


def dot_of(browser: webdriver.Chrome, point: pd.Series) -> WebElement:
    (group,) = find(browser, f'[data-checkpoint="{point["run_id"]}:{point["examples_seen"]}"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", group)
    return group


def assert_tells(browser: webdriver.Chrome, point: pd.Series) -> None:
    (tooltip,) = find(browser, "#tooltip")
    assert tooltip.is_displayed()
    names, values = ([e.text for e in find(browser, f"#tooltip {tag}")] for tag in ("dt", "dd"))
    told = dict(zip(names, values, strict=True))
    assert told["Run"].startswith(f"run {int(point['run_id'], 16)} ")
    assert told["Objective"] == point["objective"].upper()
    assert told["Model"] == point["model"]
    assert told["beta"] == f"{point['beta']:g}"
    assert told["Seed"] == "0"
    share = point["examples_seen"] / 15_360
    assert told["Checkpoint"] == f"{point['examples_seen']:,} examples, {share:.0%} of training"
    assert told["Win rate ± 95%"] == f"{point['win_rate']:.3f} ± {1.96 * point['win_rate_se']:.3f}"
    assert told["KL ± 95% [nats]"] == f"{point['kl_nats']:.2f} ± {1.96 * point['kl_se']:.2f}"


def test_it_asks_for_nothing_and_has_nothing_to_complain_of(browser: webdriver.Chrome, url: str) -> None:
    ActionChains(browser).move_to_element(find(browser, ".dot")[0]).perform()
    header(browser, "KL")[1].find_element(By.TAG_NAME, "button").click()
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked == {url}
    assert browser.get_log("browser") == []


def test_the_policy_lets_no_other_script_run(browser: webdriver.Chrome) -> None:
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.ran = 2\">')"
    )
    assert browser.execute_script("return window.ran") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_text_of_a_model_stays_text(browser: webdriver.Chrome) -> None:
    assert browser.title == "Over-optimization report"
    assert find(browser, "img") == []
    assert len(find(browser, "script")) == 2
    assert ATTACK in find(browser, "#notes li")[0].text
    header(browser, "Run")  # opens the table
    assert any(ATTACK in cell for cell in column(browser, 2))


def test_headers_sort_by_click_and_by_key_with_missing_values_last(
    browser: webdriver.Chrome, points: pd.DataFrame
) -> None:
    number, win_rate = header(browser, "Win rate")
    shown = [f"{rate:.3f} ± 0.043" for rate in sorted(points["win_rate"].dropna())]
    assert column(browser, number) != [*shown, "-"]
    win_rate.find_element(By.TAG_NAME, "button").click()
    assert column(browser, number) == [*shown, "-"]
    assert win_rate.get_attribute("aria-sort") == "ascending"
    win_rate.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column(browser, number) == [*reversed(shown), "-"]
    assert win_rate.get_attribute("aria-sort") == "descending"

    number, kl = header(browser, "KL")
    kl.find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert column(browser, number) == [f"{kl:.2f} ± {1.96 * 0.05 * kl:.2f}" for kl in sorted(points["kl_nats"])]
    assert win_rate.get_attribute("aria-sort") is None


def test_equal_rows_keep_their_order(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    seen, beta = header(browser, "Examples"), header(browser, "beta")
    for _ in range(2):
        seen[1].find_element(By.TAG_NAME, "button").click()
    beta[1].find_element(By.TAG_NAME, "button").click()
    rows = zip(column(browser, beta[0]), column(browser, seen[0]), strict=True)
    order = points.sort_values(["beta", "examples_seen"], ascending=[True, False])
    assert list(rows) == [(f"{r['beta']:g}", f"{r['examples_seen']:,}") for r in order.to_dict("records")]


def test_boxes_show_some_objectives_models_and_betas_only(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    objective, beta = header(browser, "Objective")[0], header(browser, "beta")[0]
    labels = {label.text: label for label in find(browser, "#checkpoints .filters label")}
    assert list(labels)[-3:] == ["0.02", "0.1", "1"]
    labels["IPO"].click()
    assert set(column(browser, objective)) == {"IPO"}
    labels["0.1"].click()
    labels["1"].click()
    assert set(column(browser, beta)) == {"0.1", "1"}
    wanted = points[(points["objective"] == "ipo") & points["beta"].isin([0.1, 1.0])]
    (count,) = find(browser, "#checkpoints .filters output")
    assert count.text == f"{len(wanted)} of {len(points)} rows"
    for name in ("IPO", "0.1", "1"):
        labels[name].click()
    assert len(column(browser, beta)) == len(points)


def test_a_dot_under_the_pointer_tells_its_checkpoint(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    for index in (9, 3, len(points) - 1):
        ActionChains(browser).move_to_element(dot_of(browser, points.loc[index])).perform()
        assert_tells(browser, points.loc[index])
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert not find(browser, "#tooltip")[0].is_displayed()


def test_arrows_reach_every_dot_and_escape_closes_the_tooltip(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    assert len(find(browser, 'figure .dot[tabindex="0"]')) == 1  # one stop of the Tab key
    find(browser, "figure .scroll")[0].send_keys(Keys.TAB)
    for index in range(2):
        assert_tells(browser, points.loc[index])
        browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    ActionChains(browser).send_keys(Keys.END).perform()
    assert_tells(browser, points.iloc[-1])
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not find(browser, "#tooltip")[0].is_displayed()


def test_dots_and_names_open_their_run_in_a_new_tab(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    header(browser, "Run")
    names = find(browser, "#points tbody a")
    assert [name.get_attribute("href") for name in names] == [UI + run_id for run_id in points["run_id"]]
    for point in (points.loc[9], points.loc[20]):
        link = dot_of(browser, point).find_element(By.XPATH, "..")
        assert browser.execute_script("return arguments[0].href.baseVal", link) == UI + point["run_id"]
        assert link.get_attribute("target") == "_blank"
        page = browser.current_window_handle
        link.click()
        (opened,) = set(browser.window_handles) - {page}
        browser.switch_to.window(opened)
        browser.close()
        browser.switch_to.window(page)


def test_without_a_store_dots_tell_and_nothing_links(
    driver: webdriver.Chrome, points: pd.DataFrame, tmp_path: Path
) -> None:
    driver.get(write(points, tmp_path, None))
    assert all(a.get_attribute("href").startswith(driver.current_url.split("#")[0]) for a in find(driver, "a"))
    ActionChains(driver).move_to_element(dot_of(driver, points.loc[9])).perform()
    assert find(driver, "#tooltip dd")[0].text == points.loc[9, "run_id"][:8]


def test_on_a_phone_only_tables_and_figures_scroll_sideways(browser: webdriver.Chrome) -> None:
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.refresh()
        header(browser, "Run")
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_all_of_it_is_there_without_scripts(browser: webdriver.Chrome, points: pd.DataFrame) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        assert find(browser, "th button, .filters") == []
        find(browser, "#checkpoints summary")[0].click()
        rows = find(browser, "#points tbody tr")
        assert len(rows) == len(points)
        assert rows[0].is_displayed()
        assert not find(browser, "#dots-hint")[0].is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
