"""What a judge that reads is asked, and how its answer is read: a template with fenced texts, a strict parser."""

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from jinja2 import Environment, StrictUndefined, TemplateError, meta
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from overopt.evaluation.records import Comparison

AnswerForm = Literal["structured", "text", "letter"]
#: What a template must use, and what else it may.
REQUIRED_NAMES = {"post", "summary_a", "summary_b", "answer_format"}
OPTIONAL_NAMES = {"boundary", "words_a", "words_b"}
DEFAULT_TEMPLATE = Path("conf/judge/concise.txt")

_CHOICE_LINE = re.compile(r'[*_`"\s]*Preferred:[*_`"\s]*(A|B|tie)[*_`".\s]*')
_VERDICTS = {"A": ("win", 1.0), "B": ("loss", 0.0), "tie": ("tie", 0.5)}
_PROBE = Comparison("probe", "A post.", sample="One summary.", opponent="Another summary.")


class _Answer(BaseModel):
    """A structured answer, nothing more and nothing less."""

    model_config = ConfigDict(extra="forbid", strict=True)
    comparison: Annotated[str, StringConstraints(strip_whitespace=True)]
    choice: Literal["A", "B", "tie"]


class Choice(NamedTuple):
    """How a written answer was read.

    Attributes:
        kind: ``win`` for A, ``loss`` for B, ``tie``, or ``unreadable``.
        win_probability: that A is preferred; ``None`` when unreadable.
    """

    kind: str
    win_probability: float | None


class Question:
    """A template file, filled in for a comparison; the sample is summary A.

    The template is one user message in Jinja's syntax. ``post``, ``summary_a`` and ``summary_b`` come out fenced:
    between marks that carry a boundary which occurs in none of the texts, so that no text can close its fence.
    ``answer_format`` says how to answer. Besides, there are ``boundary`` and the lengths ``words_a`` and ``words_b``.

    Args:
        template: the file.
        answers: ``structured``, a JSON object that the endpoint is held to; ``text``, a comparison and the choice on a
            last line of its own; or ``letter``, the choice alone.
        ties: whether the judge may call it a tie.

    Raises:
        ValueError: no such file, or it is no template of a question.
    """

    def __init__(
        self, template: Path = DEFAULT_TEMPLATE, *, answers: AnswerForm = "structured", ties: bool = False
    ) -> None:
        self._choices = ("A", "B", "tie") if ties else ("A", "B")
        self._form = _FORMS[answers]
        if not template.is_file():
            raise ValueError(f"no question at {template}: name a template file of it with --judge.template")
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            source = template.read_text(encoding="utf-8")
            names = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except (TemplateError, UnicodeDecodeError) as error:
            raise ValueError(f"{template} is no template of a question: {error}") from error
        missing, unknown = REQUIRED_NAMES - names, names - REQUIRED_NAMES - OPTIONAL_NAMES
        if missing or unknown:
            found = f"lacks {', '.join(sorted(missing))}" if missing else f"uses {', '.join(sorted(unknown))}"
            raise ValueError(
                f"{template} {found}: a question uses {', '.join(sorted(REQUIRED_NAMES))} and may use "
                f"{', '.join(sorted(OPTIONAL_NAMES))}"
            )
        self.name = template.stem
        self._source = source

    @property
    def fingerprint(self) -> str:
        """Hash of the template, a filled-in question and its answer's schema: it changes with each, and with this code.

        The template besides the question, since it may ask otherwise about other texts.
        """
        return hashlib.sha256(f"{self._source}\n{self.text(_PROBE)}\n{self.response_format()}".encode()).hexdigest()[
            :16
        ]

    def text(self, comparison: Comparison) -> str:
        """The user message."""
        boundary = _boundary(comparison)

        def fenced(name: str, text: str) -> str:
            return f"<{name} {boundary}>\n{text.strip()}\n</{name} {boundary}>"

        return self._template.render(
            post=fenced("post", comparison.prompt),
            summary_a=fenced("summary_a", comparison.sample),
            summary_b=fenced("summary_b", comparison.opponent),
            answer_format=self._form.request.format(self._form.alternatives(self._choices)),
            boundary=boundary,
            words_a=len(comparison.sample.split()),
            words_b=len(comparison.opponent.split()),
        )

    def response_format(self) -> dict[str, object] | None:
        """What the endpoint holds a structured answer to; ``None`` for the other forms."""
        if not self._form.is_json:
            return None
        properties = {"comparison": {"type": "string"}, "choice": {"type": "string", "enum": list(self._choices)}}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": {**schema, "additionalProperties": False}},
        }

    def read(self, answer: str) -> Choice:
        """What an answer chose. Anything but one plain choice in the form that was asked for is unreadable."""
        choice = self._form.read(answer)
        if choice is None or choice not in self._choices:
            return Choice("unreadable", None)
        return Choice(*_VERDICTS[choice])


def _boundary(comparison: Comparison) -> str:
    """A code that is in none of the texts. It depends on nothing else, so that equal questions stay equal."""
    texts = (comparison.prompt, comparison.sample, comparison.opponent)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    boundary = digest[:12]
    while any(boundary in text for text in texts):
        digest = hashlib.sha256(digest.encode()).hexdigest()
        boundary = digest[:12]
    return boundary


def _structured_choice(answer: str) -> str | None:
    try:
        return _Answer.model_validate_json(answer).choice
    except ValidationError:
        return None


def _written_choice(answer: str) -> str | None:
    """The choice on the last line; ``None`` where there is none, or another one further up contradicts it."""
    lines = [line for line in answer.splitlines() if line.strip()]
    stated = [match.group(1) for line in lines if (match := _CHOICE_LINE.fullmatch(line))]
    if not lines or not _CHOICE_LINE.fullmatch(lines[-1]) or len(set(stated)) != 1:
        return None
    return stated[-1]


def _letter(answer: str) -> str | None:
    return answer.strip().strip('".')


class _Form(NamedTuple):
    """One way to answer.

    Attributes:
        request: what is asked for, with a place for the choices.
        choice: how a choice is written there.
        read: the choice in an answer; ``None`` where there is no single one.
        is_json: whether an endpoint can be held to it.
    """

    request: str
    choice: str
    read: Callable[[str], str | None]
    is_json: bool = False

    def alternatives(self, choices: Sequence[str]) -> str:
        """All choices as they are written."""
        written = [f'"{self.choice.format(choice)}"' for choice in choices]
        return ", ".join(written[:-1]) + " or " + written[-1]


_FORMS: dict[AnswerForm, _Form] = {
    "structured": _Form(
        'Answer with a JSON object of two fields: "comparison", one sentence that compares the two summaries, and then '
        '"choice", which is {}.',
        "{}",
        _structured_choice,
        is_json=True,
    ),
    "text": _Form(
        "First compare the two summaries in one sentence. Then state your choice on a last line of its own: {}.",
        "Preferred: {}",
        _written_choice,
    ),
    "letter": _Form("Answer with nothing but your choice: {}.", "{}", _letter),
}
