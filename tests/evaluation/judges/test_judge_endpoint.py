"""The misbehaving server does what it says, seen through a plain client of OpenAI's."""

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import openai
import pytest

import judge_endpoint
from judge_endpoint import FAULTS, MODEL, Behaviour, judge_served, tokens
from judged_texts import made_up, truth, unanswered

SCHEMA = {
    "type": "object",
    "properties": {"comparison": {"type": "string"}, "preferred": {"type": "string", "enum": ["first", "second"]}},
    "required": ["comparison", "preferred"],
    "additionalProperties": False,
}
STRUCTURED = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
ROW = made_up(0)


def question(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{row['prompt']}\nA: {row['response']}\nB: {row['opponent']}"}]


def client(endpoint, **settings):
    return openai.OpenAI(**{"base_url": endpoint.url, "api_key": "sk-ours", "max_retries": 0, "timeout": 2} | settings)


def ask(endpoint, row=ROW, *, model: str = MODEL, response_format=openai.omit, **settings):
    with client(endpoint, **settings) as api:
        return api.chat.completions.create(model=model, messages=question(row), response_format=response_format)


@pytest.mark.parametrize("number", range(4))
def test_an_answer_says_which_text_is_worth_more_as_text_and_as_structure(number):
    row = made_up(number)
    first_is_better = truth(row) == "win"
    with judge_served() as endpoint:
        text = ask(endpoint, row)
        structure = json.loads(ask(endpoint, row, response_format=STRUCTURED).choices[0].message.content)
    said = text.choices[0].message.content
    assert said.splitlines()[-1] == f"Preferred: {'A' if first_is_better else 'B'}"
    assert structure["preferred"] == ("first" if first_is_better else "second")
    assert text.usage.prompt_tokens == tokens(question(row)[0]["content"])
    assert text.usage.completion_tokens == tokens(said) > 0
    assert [entry["answer"] for entry in endpoint.entries] == ["good"] * 2
    assert all(entry["delivered"] and entry["text"] for entry in endpoint.entries)
    assert {entry["case"] for entry in endpoint.entries} == {f"{number:06d}"}
    assert len({entry["question"] for entry in endpoint.entries}) == 1


def test_both_verdicts_occur_among_made_up_comparisons():
    assert {truth(made_up(number)) for number in range(10)} == {"win", "loss"}


def broken(endpoint):
    """What a plain client makes of a fault: its error, or the answer that it took for one."""
    try:
        return ask(endpoint)
    except (openai.OpenAIError, ValueError) as error:
        return error


STATUSES = {"429 in seconds": 429, "429 in milliseconds": 429, "429 at a date": 429, "429": 429, "500": 500, "503": 503}


@pytest.mark.parametrize(("kind", "status"), STATUSES.items(), ids=STATUSES)
def test_a_fault_by_status_comes_with_the_header_that_it_names(kind, status):
    with judge_served(Behaviour(faults=1, kinds=[kind])) as endpoint:
        found = broken(endpoint)
    assert found.status_code == status
    header = found.response.headers.get("retry-after")
    milliseconds = found.response.headers.get("retry-after-ms")
    if kind == "429 in seconds":
        assert (header, milliseconds) == ("1", None)
    elif kind == "429 in milliseconds":
        assert (header, milliseconds) == (None, "300")
    elif kind == "429 at a date":
        assert 0 < parsedate_to_datetime(header).timestamp() - time.time() <= 2
    else:
        assert (header, milliseconds) == (None, None)
    [entry] = endpoint.entries
    assert (entry["answer"], entry["delivered"], entry["text"]) == (kind, False, None)


@pytest.mark.parametrize("kind", ["cut before", "cut within"])
def test_a_cut_connection_is_one_to_the_client(kind):
    with judge_served(Behaviour(faults=1, kinds=[kind])) as endpoint:
        assert type(broken(endpoint)) is openai.APIConnectionError
    assert [entry["delivered"] for entry in endpoint.entries] == [False]


def test_slow_bytes_outlast_a_time_out_between_bytes_but_not_one_of_the_whole():
    with judge_served(Behaviour(faults=1, kinds=["slow"], slow=1.2)) as endpoint:
        # 0.3 s without a byte never pass, so the client's own time-out lets the answer through.
        assert ask(endpoint, timeout=0.3).choices[0].message.content.startswith("Comparison")

        async def within(seconds: float) -> None:
            async with openai.AsyncOpenAI(base_url=endpoint.url, api_key="sk-ours", max_retries=0) as api:
                await asyncio.wait_for(api.chat.completions.create(model=MODEL, messages=question(ROW)), seconds)

        with pytest.raises(TimeoutError):
            asyncio.run(within(0.4))
    assert [entry["delivered"] for entry in endpoint.entries] == [True, False]
    assert [entry["ended"] - entry["received"] > 1 for entry in endpoint.entries] == [True, False]


def test_what_comes_with_status_200_is_no_verdict():
    found = {}
    for kind in ("invalid JSON", "page", "no choices", "no message", "list", "error with 200"):
        with judge_served(Behaviour(faults=1, kinds=[kind])) as endpoint:
            found[kind] = broken(endpoint)
        assert [entry["answer"] for entry in endpoint.entries] == [kind]
    assert isinstance(found["invalid JSON"], ValueError)  # the client lets json's own error through
    assert found["page"].startswith("<html>")
    assert found["no choices"].choices == []
    assert found["no message"].choices[0].message is None
    assert isinstance(found["list"], list)
    assert found["error with 200"].choices is None


def test_faults_are_the_share_that_was_asked_for_and_all_kinds_come():
    with judge_served(Behaviour(faults=0.5, slow=0.02)) as endpoint:

        async def ask_all() -> None:
            async with openai.AsyncOpenAI(base_url=endpoint.url, api_key="sk-ours", max_retries=0) as api:
                slots = asyncio.Semaphore(8)

                async def one(number: int) -> None:
                    async with slots:
                        await api.chat.completions.create(model=MODEL, messages=question(made_up(number)))

                await asyncio.gather(*map(one, range(800)), return_exceptions=True)

        asyncio.run(ask_all())
    answers = [entry["answer"] for entry in endpoint.entries]
    assert len(answers) == endpoint.counts["requests"] == endpoint.counts["most_in_a_minute"] == 800
    assert abs(answers.count("good") - 400) < 5 * (800 * 0.25) ** 0.5  # five standard errors
    assert set(answers) == {"good", *FAULTS}
    assert 1 < endpoint.counts["most_under_way"] <= 8


def test_an_unreadable_answer_and_a_refusal_are_answers():
    fates = {unanswered(f"{number:06d}", unreadable=0.3, refused=0.3): number for number in range(20)}
    with judge_served(Behaviour(unreadable=0.3, refused=0.3)) as endpoint:
        unreadable = ask(endpoint, made_up(fates["unreadable"])).choices[0].message
        refused = ask(endpoint, made_up(fates["refused"])).choices[0].message
        readable = ask(endpoint, made_up(fates[None])).choices[0].message
    assert "Preferred" not in unreadable.content
    assert refused.content is None
    assert refused.refusal
    assert "Preferred" in readable.content
    assert [entry["answer"] for entry in endpoint.entries] == ["unreadable", "refused", "good"]
    assert all(entry["delivered"] for entry in endpoint.entries)


def test_a_request_within_a_pause_is_seen_unless_it_may_have_been_under_way():
    with judge_served(Behaviour(faults=1, kinds=["429 in milliseconds"])) as endpoint:
        for wait in (0, 0.2, 0.5):  # none; within 0.3 s; after that of the second, too
            time.sleep(wait)
            broken(endpoint)
    first, second, third = endpoint.entries
    assert (first["early"], third["early"]) == (None, None)
    assert second["early"] == pytest.approx(first["ended"])


def test_wrong_requests_get_the_errors_of_openai():
    with (
        judge_served(Behaviour(key="sk-other", echo_key=True)) as endpoint,
        pytest.raises(openai.AuthenticationError, match="sk-ours"),
    ):
        ask(endpoint)
    with judge_served(Behaviour(key="sk-ours")) as endpoint:
        with pytest.raises(openai.NotFoundError, match="`judge-9` does not exist"):
            ask(endpoint, model="judge-9")
        loose = {**STRUCTURED, "json_schema": {"name": "verdict", "schema": {**SCHEMA, "required": []}}}
        with pytest.raises(openai.BadRequestError, match="Invalid schema"):
            ask(endpoint, response_format=loose)
        assert [model.id for model in client(endpoint).models.list()] == [MODEL]
    assert [(entry["answer"], entry["delivered"]) for entry in endpoint.entries] == [("404", False), ("400", False)]
    with judge_served(Behaviour(structured=False)) as endpoint, pytest.raises(openai.BadRequestError):
        ask(endpoint, response_format=STRUCTURED)


def test_a_nasty_server_puts_the_key_into_its_errors():
    with judge_served(Behaviour(faults=1, kinds=["500"], echo_key=True)) as endpoint:
        assert "sk-ours" in str(broken(endpoint))
    assert "sk-ours" not in json.dumps(endpoint.entries)


def test_a_process_of_its_own_prints_its_port_and_logs_to_a_file(tmp_path):
    log = tmp_path / "log.jsonl"
    command = [sys.executable, judge_endpoint.__file__, "--log", str(log), "--latency", "0.2", "--faults", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(judge_endpoint.__file__).parent) as run:
        try:
            url = f"http://127.0.0.1:{int(run.stdout.readline())}/v1"
            with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as api:
                api.chat.completions.create(model=MODEL, messages=question(ROW))
            given_up = time.monotonic() + 20
            while not log.read_text() and time.monotonic() < given_up:  # it logs what it has sent
                time.sleep(0.01)
        finally:
            run.terminate()
    [entry] = map(json.loads, log.read_text().splitlines())
    assert entry["answer"] == "good"
    assert entry["ended"] - entry["received"] >= 0.2


def batch_file(rows, **changes) -> bytes:
    lines = [
        {
            "custom_id": row["prompt_id"],
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": question(row)},
        }
        | changes
        for row in rows
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def submit(api, content: bytes, **settings):
    file = api.files.create(file=("questions.jsonl", content), purpose="batch")
    return api.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **settings
    )


def ended(api, batch):
    statuses = [batch.status]
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.02)
        batch = api.batches.retrieve(batch.id)
        statuses.append(batch.status)
    return batch, statuses


def lines(api, file_id: str | None) -> list[dict]:
    return [json.loads(line) for line in api.files.content(file_id).text.splitlines()] if file_id else []


ROWS = [made_up(number) for number in range(40)]


def test_a_batch_goes_from_validating_to_completed_and_its_lines_come_in_another_order():
    with judge_served(Behaviour(batch_delay=0.4)) as endpoint, client(endpoint) as api:
        batch, statuses = ended(api, submit(api, batch_file(ROWS), metadata={"part": "1"}))
        output = lines(api, batch.output_file_id)
        assert api.files.retrieve(batch.input_file_id).filename == "questions.jsonl"
    assert list(dict.fromkeys(statuses)) == ["validating", "in_progress", "completed"]
    assert (batch.metadata, batch.error_file_id) == ({"part": "1"}, None)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (40, 40, 0)
    ids = [line["custom_id"] for line in output]
    assert sorted(ids) == [row["prompt_id"] for row in ROWS] != ids
    by_id = {row["prompt_id"]: row for row in ROWS}
    for line in output:
        assert line["response"]["status_code"] == 200
        answer = line["response"]["body"]["choices"][0]["message"]["content"]
        assert answer.endswith("A" if truth(by_id[line["custom_id"]]) == "win" else "B")
    assert {entry["batch"] for entry in endpoint.entries} == {batch.id}
    assert len(endpoint.entries) == 40


def test_some_lines_of_a_batch_fail_into_the_error_file():
    with judge_served(Behaviour(batch_line_faults=0.5)) as endpoint, client(endpoint) as api:
        batch, _ = ended(api, submit(api, batch_file(ROWS)))
        output, errors = lines(api, batch.output_file_id), lines(api, batch.error_file_id)
    assert {line["response"]["status_code"] for line in errors} == {429, 500}
    assert len(output) + len(errors) == 40
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))
    assert len(output) > 5 < len(errors)


def test_batches_fail_and_expire_on_demand():
    with judge_served(Behaviour(batch_fates=["failed", "expired"])) as endpoint, client(endpoint) as api:
        (failed, _), (expired, _), (completed, _) = (ended(api, submit(api, batch_file(ROWS))) for _ in range(3))
        undone = lines(api, expired.error_file_id)
        done = lines(api, expired.output_file_id)
    assert (failed.status, expired.status, completed.status) == ("failed", "expired", "completed")
    assert failed.errors.data[0].code == "token_limit_exceeded"
    assert failed.output_file_id is None
    assert len(done) == len(undone) == 20
    assert {(line["response"], line["error"]["code"]) for line in undone} == {(None, "batch_expired")}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (batch_file([ROWS[0], ROWS[0]]), "duplicate_custom_id"),
        (batch_file(ROWS, url="/v1/completions"), "mismatched_url"),
        (b"no JSON\n", "invalid_json_line"),
        (b"", "invalid_number_of_requests"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_batch_fails_in_validation(content, code):
    with judge_served(Behaviour(batch_delay=0.05)) as endpoint, client(endpoint) as api:
        batch, _ = ended(api, submit(api, content))
    assert (batch.status, batch.errors.data[0].code) == ("failed", code)


def test_a_cancelled_batch_keeps_what_was_done_and_a_completed_one_cannot_be_cancelled():
    with judge_served(Behaviour(batch_delay=0.4)) as endpoint, client(endpoint) as api:
        batch = submit(api, batch_file(ROWS))
        time.sleep(0.2)
        api.batches.retrieve(batch.id)
        assert api.batches.cancel(batch.id).status == "cancelling"
        batch, _ = ended(api, batch)
        done, undone = lines(api, batch.output_file_id), lines(api, batch.error_file_id)
        with pytest.raises(openai.ConflictError):
            api.batches.cancel(batch.id)
    assert batch.status == "cancelled"
    assert 0 < len(done) < 40
    assert len(done) + len(undone) == 40
    assert {line["error"]["code"] for line in undone} == {"batch_cancelled"}


def test_batches_are_listed_newest_first_page_by_page():
    with judge_served() as endpoint, client(endpoint) as api:
        made = [submit(api, batch_file(ROWS[:1]), metadata={"number": str(number)}).id for number in range(5)]
        page = api.batches.list(limit=2)
        assert ([batch.id for batch in page.data], page.has_more) == (made[:2:-1], True)
        assert [batch.id for batch in api.batches.list(limit=2)] == made[::-1]
        assert [batch.id for batch in api.batches.list(after=made[1])] == made[:1]


def test_a_call_that_was_cut_off_may_have_made_its_batch():
    ids = set()
    with judge_served(Behaviour(batch_call_faults=0.5)) as endpoint, client(endpoint) as api:
        while len(ids) < 30:
            with suppress(openai.OpenAIError):
                ids.add(submit(api, batch_file(ROWS[:1])).id)
        made = set()
        while not made:
            with suppress(openai.OpenAIError):
                made = {batch.id for batch in api.batches.list(limit=100)}
    assert ids < made  # some ran of which the client never heard
