"""report.html: one file with its style, script and figures inside, which asks no network for anything."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from overopt.analysis.page import words
from overopt.analysis.page.comparison_tables import (
    advice_table,
    claim_table,
    fall_table,
    law_table,
    shared_table,
    trend_table,
)
from overopt.analysis.page.method_tables import method_tables
from overopt.analysis.page.page_content import Drawing, PageSection
from overopt.analysis.page.response_samples import Samples
from overopt.analysis.page.tables import (
    RunPages,
    answer_table,
    checkpoint_table,
    dot_facts,
    fit_tables,
    provenance_table,
)
from overopt.analysis.study import StudyAnalysis

_FOLDER = Path(__file__).parent
# Pixels a point of a figure's file: the smallest at which its labels can be read, and the largest.
_SMALLEST, _LARGEST = 0.85, 1.6
# Figures that stand in a section of their own subject.
_PLACED = ("methods",)


def report_page(
    *,
    study: StudyAnalysis,
    notes: Sequence[str],
    provenance: Mapping[str, str],
    drawings: Sequence[Drawing],
    samples: Sequence[Samples],
    num_prompts: int | None,
    by_prompt: bool,
    runs: RunPages,
) -> str:
    """The page's text, from what was measured and worked out.

    A table is added by one more :class:`~overopt.analysis.page.page_content.PageSection` below.
    """
    appendix = [PageSection("checkpoints", "All checkpoints", [], [checkpoint_table(study.points, runs)])]
    if provenance:
        appendix.append(PageSection("provenance", "How this was made", [], [provenance_table(provenance)]))
    return _render(
        scope=words.scope(study.points),
        headline=words.headline(study.facts),
        answers=[words.answer(fact) for fact in study.facts],
        answer_table=answer_table(study.facts),
        certainty=words.certainty(study.points, study.facts, num_prompts, by_prompt=by_prompt),
        notes=notes,
        drawings=[drawing for drawing in drawings if drawing.name not in _PLACED],
        opening=list(_opening(study, [drawing for drawing in drawings if drawing.name in _PLACED])),
        analysis=list(_analysis(study)),
        samples=samples,
        appendix=appendix,
        how_to_open_runs=words.how_to_open_runs(runs),
        dots=dot_facts(study.points, runs),
    )


def _opening(study: StudyAnalysis, drawings: Sequence[Drawing]) -> Iterator[PageSection]:
    advice = study.advice
    tables = [advice_table(advice)] if advice.rows else []
    yield PageSection("advice", "What to use", [*words.advice(), *advice.refused], tables)
    yield PageSection("claims", "What the paper claims", [words.claims(study.claims)], [claim_table(study.claims)])
    if study.methods.compared:
        yield PageSection("by-method", "Methods", words.methods(study.methods), method_tables(study.methods), drawings)


def _analysis(study: StudyAnalysis) -> Iterator[PageSection]:
    if len(study.falls):
        yield PageSection("falls", "Is the fall real?", words.falls(), [fall_table(study.falls)])
    if study.fits.table.empty:
        yield PageSection("fits", "Fitted laws", ["No curve could be fitted; the remarks above say why."])
        return
    laws = study.comparison.laws
    yield PageSection("laws", "Which law?", words.comparison(study.comparison), [law_table(laws)] if len(laws) else [])
    yield PageSection("fits", "Fitted laws", words.how_to_read_fits(), fit_tables(study.fits.table))
    if len(study.shared):
        tables = [shared_table(study.shared)]
        if len(study.trends):
            tables.append(trend_table(study.trends))
        yield PageSection("coefficients", "Coefficients across curves", words.shared(), tables)


def _render(**content: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        zip=zip,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=script_hash(script),
        **content,
    )


def script_hash(script: str) -> str:
    """How a Content-Security-Policy names the one script that may run.

    >>> script_hash("alert(1)")
    'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='
    """
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def inline_svg(svg: str, prefix: str, label: str) -> str:
    r"""An SVG file as an element of a page: no prolog, no metadata, identifiers of its own, sized in pixels.

    A group whose id ends in checkpoint:RUN_ID:EXAMPLES_SEEN is a dot, marked by ``data-checkpoint``.

    >>> inline_svg('<?xml version="1.0"?>\n<svg width="90pt" height="9pt"><g id="a"/></svg>', "fig01", "A title")
    '<svg role="img" aria-label="A title" style="min-width: 76px; max-width: 144px"><g id="fig01-a"/></svg>'
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A checkpoint may have several dots, and an id has one place in a page.
    svg = re.sub(r'\bid="[^"]*\bcheckpoint:([^"]+)"', r'data-checkpoint="\1"', svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    # The page decides how large it is, within bounds; its shape is in the viewBox.
    start, end = svg.index("<svg"), svg.index(">")
    opening = svg[start:end]
    width = re.search(r' width="([\d.]+)', opening)
    style = (
        f' style="min-width: {_SMALLEST * float(width[1]):.0f}px; max-width: {_LARGEST * float(width[1]):.0f}px"'
        if width
        else ""
    )
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
    return opening.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"{style}', 1) + svg[end:]
