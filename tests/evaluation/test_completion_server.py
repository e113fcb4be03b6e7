import socket
import threading
import time
from functools import partial

import pytest

from completion_endpoint import MODEL, changed, completions, served
from overopt.data.packing import Packing
from overopt.evaluation.completion_server import API_KEY_VARIABLE, CompletionServer, prompt_seed
from overopt.evaluation.sampling import EvaluationPrompt, rescore
from overopt.models.generation import sample_responses
from tiny import seeded_policy

LIMIT = 12
END = 0


def prompts(number: int) -> list[EvaluationPrompt]:
    ids = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    return [EvaluationPrompt(f"row {i}", f"post {i}", ids[i % 3], "text", " opponent") for i in range(number)]


def sample(url: str, policy, number: int = 6, **settings):
    return CompletionServer(url, **settings).sample(policy, prompts(number), max_response_tokens=LIMIT, seed=3)


def test_token_ids_arrive_as_they_were_drawn_each_prompt_with_its_own_seed(tiny_policy):
    done: list[int] = []
    with served(completions(tiny_policy)) as url:
        server = CompletionServer(url, max_concurrent=4)
        draw = partial(server.sample, tiny_policy, prompts(30), max_response_tokens=40, on_batch=done.append)
        responses, again, other_seed = draw(seed=3), draw(seed=3), draw(seed=4)
    for place, (prompt, response) in enumerate(zip(prompts(30), responses, strict=True)):
        [expected] = sample_responses(
            tiny_policy.causal_lm,
            [prompt.token_ids],
            eos_token_id=END,
            max_response_tokens=40,
            seed=prompt_seed(3, place),
        )
        assert (response.token_ids, response.finished) == (expected.token_ids, expected.finished)
    assert {response.finished for response in responses} == {True, False}  # both kinds were seen
    assert again == responses
    assert [r.token_ids for r in other_seed] != [r.token_ids for r in responses]
    assert sum(done) == 90


def test_samples_of_a_server_are_rescored_as_ours_are(tiny_policy, tiny_tokenizer):
    reference = seeded_policy(1, tiny_tokenizer, scale=5.0)
    with served(completions(tiny_policy)) as url:
        sampled = sample(url, tiny_policy)
    rescored = rescore(tiny_policy, reference, prompts(6), sampled, packing=Packing())
    for completion, response in zip(rescored.completions, sampled, strict=True):
        assert completion.token_ids == response.token_ids
        # The stock forward pass computed those that the server gave.
        assert completion.policy_log_prob == pytest.approx(sum(response.log_probs), rel=1e-5)
    assert rescored.kl.k1.mean > 0.1
    rescored.agreement.require_same_model()
    assert rescored.agreement.largest_difference < 1e-4


def test_a_request_asks_for_the_whole_distribution(tiny_policy):
    requests = []

    def kept(request):
        requests.append(request)
        return completions(tiny_policy)(request)

    with served(kept) as url:
        sample(url, tiny_policy, number=2)
    for request in requests:
        assert request["temperature"] == request["top_p"] == request["repetition_penalty"] == 1
        assert request["top_k"] == -1
        assert request["min_p"] == request["frequency_penalty"] == request["presence_penalty"] == 0
        assert request["max_tokens"] == LIMIT
        assert request["return_token_ids"] is True
    assert sorted(request["prompt"] for request in requests) == sorted(p.token_ids for p in prompts(2))


def test_samples_of_another_model_are_refused_by_its_own_log_probs(tiny_policy, tiny_tokenizer):
    other = seeded_policy(1, tiny_tokenizer, scale=5.0)
    with served(completions(other)) as url:
        sampled = sample(url, tiny_policy)
    rescored = rescore(tiny_policy, tiny_policy, prompts(6), sampled, packing=Packing())
    with pytest.raises(ValueError, match=r"another model .* nats a token above ours"):
        rescored.agreement.require_same_model()


BAD_CHOICES = {
    "text only": (lambda choice: choice.pop("token_ids"), "returns text without token ids"),
    "no tokens": (lambda choice: choice.update(token_ids=[]), "for token ids"),
    "words for tokens": (lambda choice: choice.update(token_ids=["the"]), "for token ids"),
    "outside the vocabulary": (lambda choice: choice.update(token_ids=[5, 300]), "token 300, outside"),
    "too many": (lambda choice: choice.update(token_ids=[5] * (LIMIT + 1)), "13 tokens where at most 12"),
    "beyond the end": (lambda choice: choice.update(token_ids=[5, END, 6, END]), "went on after the end of text"),
    "cut short": (lambda choice: choice.update(token_ids=[5, 6], finish_reason="length"), "after 2 of 12 tokens"),
    "another prompt": (lambda choice: choice.update(prompt_token_ids=[1, 2]), "read another prompt"),
}


@pytest.mark.parametrize(("change", "named"), BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_what_is_no_response_by_token_ids_is_one_line(change, named, tiny_policy):
    with (
        served(changed(completions(tiny_policy), change)) as url,
        pytest.raises(ValueError, match=named) as error,
    ):
        sample(url, tiny_policy)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


def test_log_probs_are_no_condition(tiny_policy):
    with served(changed(completions(tiny_policy), lambda choice: choice.pop("logprobs"))) as url:
        assert {response.log_probs for response in sample(url, tiny_policy)} == {None}


def test_what_may_pass_is_tried_again(tiny_policy):
    answer, busy = completions(tiny_policy), [503, 429]

    def overloaded(request):
        return (busy.pop(), {"error": {"message": "busy"}}) if busy else answer(request)

    with served(overloaded) as url:
        assert len(sample(url, tiny_policy, number=2, max_concurrent=1)) == 2
    assert not busy


ANSWERS = {
    "refuses token ids": (
        (400, {"error": {"message": "prompt must be a string."}}),
        "400 .*must be a string.*token ids",
    ),
    "refuses to return them": (
        (422, {"detail": "Unexpected fields: return_token_ids"}),
        "422 .*fields: return_token_ids",
    ),
    "wants a key": ((401, {"error": {"message": "Unauthorized"}}), API_KEY_VARIABLE),
    "another path": ((404, {"detail": "Not Found"}), "ends with /v1"),
    "a web page": ((200, "<html>hello</html>"), "no completion"),
    "another protocol": ((200, {"answer": 42}), "no completion"),
    "no choice": ((200, {"id": "1", "choices": []}), "no completion"),
}


@pytest.mark.parametrize(("answer", "named"), ANSWERS.values(), ids=ANSWERS)
def test_what_is_no_completions_server_is_one_line(answer, named, tiny_policy):
    with served(lambda _: answer) as url, pytest.raises(ValueError, match=named) as error:
        sample(url, tiny_policy)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("overopt.evaluation.completion_server._RETRIES", 0)


def test_a_dead_server_is_one_line(tiny_policy, impatient):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ValueError, match="can't be reached") as error:
            sample(url, tiny_policy)
    assert url in str(error.value)


def test_a_server_that_does_not_answer_is_given_up(tiny_policy, impatient):
    released = threading.Event()

    def asleep(request):
        released.wait(20)
        return 500, {}

    begin = time.monotonic()
    with served(asleep) as url:
        try:
            with pytest.raises(ValueError, match=r"does not answer within 0\.3 s"):
                sample(url, tiny_policy, timeout=0.3)
        finally:
            released.set()
    assert time.monotonic() - begin < 10


def test_the_model_is_named_where_there_are_several(tiny_policy):
    with served(completions(tiny_policy), models=("other", MODEL)) as url:
        with pytest.raises(ValueError, match="other, the-policy as its models: name one with --sampler-model"):
            sample(url, tiny_policy)
        assert len(sample(url, tiny_policy, model=MODEL)) == 6
        with pytest.raises(ValueError, match=r"404 .*`third` does not exist"):
            sample(url, tiny_policy, model="third")


def test_no_more_requests_are_under_way_than_allowed(tiny_policy):
    answer, under_way, most = completions(tiny_policy), [], []
    lock = threading.Lock()

    def counting(request):
        with lock:
            under_way.append(request)
            most.append(len(under_way))
        time.sleep(0.05)
        content = answer(request)
        with lock:
            under_way.remove(request)
        return content

    with served(counting) as url:
        sample(url, tiny_policy, number=12, max_concurrent=3)
    assert max(most) == 3


@pytest.mark.parametrize(
    "settings",
    [{"url": "127.0.0.1:8000"}, {"url": "http://x", "max_concurrent": 0}, {"url": "http://x", "timeout": 0.0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"no URL|need max_concurrent"):
        CompletionServer(**settings)
