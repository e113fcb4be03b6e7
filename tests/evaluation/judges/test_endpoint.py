"""One question to an endpoint: what passes, what is final, and who sees the key."""

import asyncio
import json
import time
import traceback
from email.utils import formatdate

import pytest

from judge_endpoint import MODEL, Behaviour, judge_served
from overopt.evaluation.judges.endpoint import OPENAI, Endpoint, PassingError, Reply, retry_after
from overopt.evaluation.judges.prices import Usage

KEY = "sk-secret-0123456789"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "A question."}]}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OVEROPT_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-alone")


@pytest.fixture
def endpoint():
    return Endpoint("http://127.0.0.1:8000/v1")


def error_body(message="It said so.", code=None):
    return {"error": {"message": message, "type": "some", "param": None, "code": code}}


def outcome(endpoint, status, body, headers=None):
    """What an error answer comes to: the reply, or what was raised."""
    try:
        return endpoint.refused_or_raise(status, body, json.dumps(body), headers)
    except (PassingError, ValueError) as error:
        return error


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_time_mends_may_be_asked_again(endpoint, status):
    error = outcome(endpoint, status, error_body())
    assert type(error) is PassingError
    assert str(error) == f"{status} It said so."
    assert error.retry_after is None


@pytest.mark.parametrize(
    ("status", "way_out"),
    [
        (400, "--judge.answers text"),
        (401, "check the key in OVEROPT_JUDGE_API_KEY"),
        (403, "check the key in OVEROPT_JUDGE_API_KEY"),
        (404, "check --judge.model, and --judge.base_url"),
        (405, "not to its liking"),
        (413, "not to its liking"),
        (422, "--judge.temperature null"),
    ],
)
def test_what_time_does_not_mend_is_final_and_says_the_way_out(endpoint, status, way_out):
    error = outcome(endpoint, status, error_body())
    assert type(error) is ValueError
    assert f"the endpoint at http://127.0.0.1:8000/v1 answered {status} (It said so.)" in str(error)
    assert way_out in str(error)


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_an_account_without_money_is_final_though_it_looks_like_a_rate_limit(endpoint, code):
    error = outcome(endpoint, 429, error_body(code=code), {"retry-after": "1"})
    assert type(error) is ValueError
    assert "the account can't pay for more" in str(error)


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_filtered_question_is_a_refusal_that_keeps_the_filters_words_and_costs_nothing(endpoint, code):
    reply = outcome(endpoint, 400, error_body("Filtered: violence.", code))
    assert reply == Reply(text="Filtered: violence.", refused=True, usage=Usage())
    assert type(outcome(endpoint, 400, error_body("Unknown field.", "other"))) is ValueError


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (error_body("First line.\nSecond line."), "500 First line."),
        ({"message": "Flat, as OpenAI's client gives it."}, "500 Flat, as OpenAI's client gives it."),
        ({"detail": "FastAPI's way."}, "500 FastAPI's way."),
        ({"error": "A string."}, '500 {"error": "A string."}'),
        ("<html>", '500 "<html>"'),
        (None, "500 null"),
        (error_body("long " * 1000), "500 " + ("long " * 1000)[:300]),
    ],
)
def test_a_servers_words_are_found_in_whatever_shape_and_cut_to_a_line(endpoint, body, reason):
    assert str(outcome(endpoint, 500, body)) == reason


def test_a_server_without_words_is_quoted_without_any(endpoint):
    with pytest.raises(PassingError, match=r"^502 no reason given$"):
        endpoint.refused_or_raise(502, None, " \n ")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "1e3"}, 1000.0),
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 99 Foo 2999 99:99:99 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
    ],
)
def test_when_to_come_back_is_read_in_every_form_and_nonsense_is_no_word_at_all(headers, expected):
    assert retry_after(headers) == expected


def test_when_to_come_back_may_be_a_date():
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=1.5)
    assert retry_after({"retry-after": formatdate(time.time() - 30, usegmt=True)}) == 0


def test_a_pause_comes_with_the_error_that_announced_it(endpoint):
    assert outcome(endpoint, 429, error_body(), {"retry-after": "7"}).retry_after == 7


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1:8000/v1",
        "https://hunter2@127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/v1?key=hunter2",
        "http://127.0.0.1:8000/v1#hunter2",
        "user:hunter2@127.0.0.1:8000/v1",
        "https//user:hunter2@127.0.0.1/v1",
    ],
)
def test_a_url_that_holds_credentials_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="give the key in an environment variable") as error:
        Endpoint(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http://", "http://[::1/v1", "http://127.0.0.1:port/v1"]
)
def test_what_is_no_url_is_named(url):
    with pytest.raises(ValueError, match="is no URL of an endpoint; expected such as http") as error:
        Endpoint(url)
    assert repr(url) in str(error.value)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_time_out_takes_time(timeout):
    with pytest.raises(ValueError, match="need a time-out > 0 s"):
        Endpoint(timeout=timeout)


@pytest.mark.parametrize(
    ("url", "variable", "expected"),
    [
        (OPENAI, None, "sk-of-openai-alone"),
        ("http://127.0.0.1:8000/v1", None, KEY),
        ("https://api.openai.com.example/v1", None, KEY),
        ("https://example.org/api.openai.com/v1", None, KEY),
        (OPENAI, "A_VARIABLE_OF_MINE", "sk-mine"),
        ("https://example.org/v1", "A_VARIABLE_OF_MINE", "sk-mine"),
    ],
)
def test_openais_key_goes_to_openai_alone(url, variable, expected, monkeypatch):
    monkeypatch.setenv("A_VARIABLE_OF_MINE", " sk-mine\n")
    assert Endpoint(url, variable).client().api_key == expected


def test_the_key_that_a_server_sees_is_the_others_one():
    with judge_served(Behaviour(key=KEY)) as served:
        assert ask(Endpoint(served.url), BODY).text
        with pytest.raises(ValueError, match="answered 401"):
            ask(Endpoint(served.url, "OPENAI_API_KEY"), BODY)


def test_a_missing_key_is_named_where_one_is_needed_and_not_missed_where_none_is(monkeypatch):
    for variable in ("OPENAI_API_KEY", "OVEROPT_JUDGE_API_KEY"):
        monkeypatch.delenv(variable)
    with pytest.raises(
        ValueError, match=r"^no key for https://api\.openai\.com/v1: set the environment variable OPENAI_"
    ):
        Endpoint().client()
    with pytest.raises(ValueError, match="set the environment variable MINE to it"):
        Endpoint("http://127.0.0.1:8000/v1", "MINE").client()
    assert Endpoint("http://127.0.0.1:8000/v1").client().api_key == "none"


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "Bearer sk-one", "sk-one\u2026", "sk-\x07one"])
def test_what_can_be_no_key_is_refused_before_a_client_could_repeat_it(key, monkeypatch):
    monkeypatch.setenv("OVEROPT_JUDGE_API_KEY", key)
    with pytest.raises(ValueError, match="what OVEROPT_JUDGE_API_KEY holds is no key") as error:
        Endpoint("http://127.0.0.1:8000/v1").client()
    assert "sk-" not in str(error.value)


def ask(endpoint, body):
    async def once() -> Reply:
        async with endpoint.client() as client:
            return await endpoint.ask(client, body)

    return asyncio.run(once())


@pytest.mark.parametrize("kind", ["429", "500", "503"])
def test_a_key_that_a_server_repeats_is_in_no_error_and_in_no_traceback(kind):
    with (
        judge_served(Behaviour(faults=1, kinds=[kind], echo_key=True)) as served,
        pytest.raises(PassingError) as error,
    ):
        ask(Endpoint(served.url), BODY)
    assert "(key [key])" in str(error.value)
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_a_wrong_key_that_a_server_repeats_is_in_no_error_and_in_no_traceback():
    with (
        judge_served(Behaviour(key="another", echo_key=True)) as served,
        pytest.raises(ValueError, match=r"answered 401 \(Incorrect API key provided: \[key\].\)") as error,
    ):
        ask(Endpoint(served.url), BODY)
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_of_a_key_at_the_place_where_words_are_cut_no_half_is_left(endpoint):
    for place in range(270, 301):
        error = outcome(endpoint, 500, error_body("x" * place + KEY))
        assert "sk-" not in str(error)


def completion(**changes):
    message = {"role": "assistant", "content": "Preferred: A"} | changes.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | changes.pop("choice", {})
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"id": "x", "model": "judge-1-2026", "choices": [choice], "usage": usage} | changes


def read(endpoint, content) -> Reply:
    return endpoint.read(json.dumps(content))


PLAIN = Reply(text="Preferred: A", model="judge-1-2026", usage=Usage(100, 20))


def test_an_answer_is_read_whatever_else_a_server_puts_there(endpoint):
    assert read(endpoint, completion()) == PLAIN
    more = {"system_fingerprint": "x", "choice": {"logprobs": {"content": []}}, "message": {"reasoning_content": "Hm."}}
    assert read(endpoint, completion(**more)) == PLAIN


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"message": {"content": None}}, {"text": ""}),
        ({"message": {"content": None, "refusal": "I won't."}}, {"text": "I won't.", "refused": True}),
        ({"message": {"content": "", "refusal": ""}}, {"text": "", "refused": True}),
        ({"choice": {"finish_reason": "length"}}, {"cut": True}),
        ({"choice": {"finish_reason": "content_filter"}}, {"refused": True}),
        ({"choice": {"finish_reason": None}}, {}),
        ({"model": None}, {"model": None}),
    ],
)
def test_no_content_refusals_and_cut_answers_are_answers_of_their_own_kind(endpoint, changes, changed):
    assert read(endpoint, completion(**changes)) == PLAIN.model_copy(update=changed)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": None}, Usage(100, 20)),
        (
            {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 64}},
            Usage(100, 20, 64),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 64}}, Usage(9, 2, 9)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {}}, Usage(100, 20)),
        (None, None),
        ({}, None),
        ({"total_tokens": 120}, None),
        ({"prompt_tokens": 100, "completion_tokens": None}, None),
    ],
)
def test_tokens_are_counted_by_the_server_or_not_at_all_and_the_answer_counts_either_way(endpoint, usage, counted):
    assert read(endpoint, completion(usage=usage)) == PLAIN.model_copy(update={"usage": counted})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>Please sign in.</html>",
        b'{"choices": [',
        b"[]",
        b"null",
        b'{"error": {"message": "Provider failed."}}',
        json.dumps(completion(choices=None)).encode(),
        json.dumps(completion(choices=[{"index": 0}])).encode(),
        json.dumps(completion(message={"content": 5})).encode(),
        json.dumps(completion(usage={"prompt_tokens": -100, "completion_tokens": -20})).encode(),
    ],
)
def test_what_is_no_completion_may_pass(endpoint, content):
    with pytest.raises(PassingError, match="an answer that is no chat completion"):
        endpoint.read(content)


@pytest.mark.parametrize("count", [0, 2])
def test_an_answer_of_no_or_several_choices_is_none_but_its_tokens_are_paid_for(endpoint, count):
    with pytest.raises(PassingError, match=f"an answer with {count} choices") as error:
        read(endpoint, completion(choices=completion()["choices"] * count))
    assert error.value.usage == Usage(100, 20)


def test_a_server_that_repeats_the_key_in_nonsense_leaves_it_in_no_traceback(endpoint):
    with pytest.raises(PassingError) as error:
        read(endpoint, {"error": f"no such key: {KEY}"})
    assert KEY not in "".join(traceback.format_exception(error.value))
    assert read(endpoint, completion(model=f"judge {KEY}")).model == "judge [key]"


@pytest.mark.parametrize("kind", ["cut before", "cut within"])
def test_a_cut_connection_may_pass(kind):
    with judge_served(Behaviour(faults=1, kinds=[kind])) as served, pytest.raises(PassingError) as error:
        ask(Endpoint(served.url), BODY)
    assert str(error.value)


def test_a_server_that_is_not_there_may_come_back():
    with pytest.raises(PassingError, match="connection"):
        ask(Endpoint("http://127.0.0.1:9/v1"), BODY)


def test_bytes_that_keep_coming_do_not_outlast_the_time_out_of_the_whole():
    with judge_served(Behaviour(faults=1, kinds=["slow"], slow=2.0)) as served:
        begun = time.monotonic()
        with pytest.raises(PassingError, match=r"no whole answer within 0\.4 s"):
            ask(Endpoint(served.url, timeout=0.4), BODY)
        assert time.monotonic() - begun < 1.5


def test_fields_that_openais_client_does_not_know_reach_the_server():
    # The server checks the schema, so it has got the field; top_k is none of the client's.
    loose = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    with judge_served() as served:
        assert ask(Endpoint(served.url), BODY | {"top_k": 1, "chat_template_kwargs": {"thinking": False}}).text
        with pytest.raises(ValueError, match="Invalid schema"):
            ask(Endpoint(served.url), BODY | {"response_format": loose})
