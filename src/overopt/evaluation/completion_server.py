"""Samples from an OpenAI-compatible completions endpoint, by token ids: vLLM's, SGLang's and their like."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, OpenAIError
from openai.types import Completion, CompletionChoice

from overopt.data.tokenization import end_of_text_id
from overopt.evaluation.endpoint_errors import first_line, read_error
from overopt.evaluation.sampling import EvaluationPrompt
from overopt.models.generation import SampledResponse
from overopt.models.policy import Policy

#: The server's key, where it wants one. Not OPENAI_API_KEY, which is nobody's but OpenAI's to see.
API_KEY_VARIABLE = "OVEROPT_SAMPLER_API_KEY"

# Of connections that failed, time-outs, 429 and 5xx; waits grow from half a second to eight.
_RETRIES = 4


class ResponseLimits(NamedTuple):
    """What a response of this policy can look like.

    Attributes:
        end_of_text: the id that ends it.
        vocabulary: ids are below this.
        max_tokens: length limit, the end of text included.
    """

    end_of_text: int
    vocabulary: int
    max_tokens: int


@dataclass(frozen=True)
class CompletionServer:
    """A server that samples from one policy; its :meth:`sample` is a :class:`overopt.evaluation.sampling.Sampler`.

    Attributes:
        url: base URL of the API, such as ``http://127.0.0.1:8000/v1``.
        model: the model's name there; by default the only one that the server lists.
        max_concurrent: requests under way at a time.
        timeout: of one request [s].

    Raises:
        ValueError: no URL, or a number out of its range.
    """

    url: str
    model: str | None = None
    max_concurrent: int = 32
    timeout: float = 300.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.url!r} is no URL of a server; expected such as http://127.0.0.1:8000/v1")
        if self.max_concurrent < 1 or not self.timeout > 0:
            raise ValueError(
                f"need max_concurrent >= 1 and timeout > 0, got {self.max_concurrent} and {self.timeout} s"
            )

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[EvaluationPrompt],
        *,
        max_response_tokens: int,
        seed: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[SampledResponse]:
        """One response per prompt as the server drew it, arguments as in :class:`overopt.evaluation.sampling.Sampler`.

        The policy is what the server is taken to serve; only its vocabulary and end of text are read here.

        Raises:
            ValueError: the server can't be reached, refuses, or answers with anything but the token ids of a response
                that ended by itself or at the length limit.
        """
        limits = ResponseLimits(
            end_of_text_id(policy.tokenizer),
            int(policy.causal_lm.config.get_text_config().vocab_size),
            max_response_tokens,
        )
        prompt_ids = [prompt.token_ids for prompt in prompts]
        try:
            return asyncio.run(self._sample(prompt_ids, limits, seed, on_batch or (lambda _: None)))
        except APIStatusError as error:
            reason = first_line(read_error(error.body, error.response.text).reason)
            raise ValueError(
                f"the server at {self.url} answered {error.status_code} ({reason}); {_way_out(error.status_code)}"
            ) from error
        except APIConnectionError as error:  # a time-out is one, too
            reason = first_line(str(error.__cause__ or error))
            raise ValueError(
                f"the server at {self.url} can't be reached or does not answer within {self.timeout:g} s ({reason}): "
                "start it, or check --sampler-url and --sampler-timeout"
            ) from error
        except OpenAIError as error:
            raise ValueError(f"the server at {self.url} gave no completion ({first_line(str(error))})") from error

    async def _sample(
        self, prompts: Sequence[list[int]], limits: ResponseLimits, seed: int, on_batch: Callable[[int], None]
    ) -> list[SampledResponse]:
        api_key = os.environ.get(API_KEY_VARIABLE) or "none"
        async with AsyncOpenAI(
            base_url=self.url, api_key=api_key, timeout=self.timeout, max_retries=_RETRIES
        ) as client:
            model = self.model or await self._only_model(client)
            slots = asyncio.Semaphore(self.max_concurrent)

            async def draw(place: int, prompt: list[int]) -> SampledResponse:
                async with slots:
                    choice = await self._complete(client, model, prompt, limits.max_tokens, prompt_seed(seed, place))
                try:
                    response = read_response(choice, prompt, limits)
                except ValueError as error:
                    raise ValueError(f"the server at {self.url} {error}") from error
                on_batch(1)
                return response

            return await asyncio.gather(*(draw(place, prompt) for place, prompt in enumerate(prompts)))

    async def _complete(
        self, client: AsyncOpenAI, model: str, prompt: list[int], max_tokens: int, seed: int
    ) -> CompletionChoice:
        # Whatever a server would take from the model's generation config is named here, so that nothing is cut.
        answer = await client.completions.create(
            model=model,
            prompt=prompt,
            max_tokens=max_tokens,
            n=1,
            seed=seed,
            temperature=1.0,
            top_p=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            logprobs=1,
            extra_body={"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True},
        )
        # What is not JSON comes back as text, and fields are not checked.
        if not isinstance(answer, Completion) or len(answer.choices or ()) != 1:
            raise ValueError(
                f"the server at {self.url} gave no completion: is it an OpenAI-compatible API, /v1 included?"
            )
        return answer.choices[0]

    async def _only_model(self, client: AsyncOpenAI) -> str:
        listed = getattr(await client.models.list(), "data", None) or []
        names = [str(model.id) for model in listed]
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise ValueError(f"the server at {self.url} lists {found} as its models: name one with --sampler-model")
        return names[0]


def prompt_seed(seed: int, place: int) -> int:
    """The seed of a prompt's request, in [0, 2^31): servers differ in what they take beyond.

    >>> prompt_seed(0, 0) != prompt_seed(0, 1) != prompt_seed(1, 0)
    True
    """
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0]) >> 1


def read_response(choice: CompletionChoice, prompt: Sequence[int], limits: ResponseLimits) -> SampledResponse:
    """A server's choice as the response that it drew.

    Args:
        choice: of the server's answer, with vLLM's fields ``token_ids`` and ``prompt_token_ids``.
        prompt: the token ids that were sent.
        limits: what the response may be.

    Raises:
        ValueError: the token ids are missing, or those of no response that the policy could have been asked for. The
            message goes on after "the server ...".
    """
    fields = choice.model_extra or {}
    token_ids, prompt_ids = fields.get("token_ids"), fields.get("prompt_token_ids")
    if token_ids is None:
        raise ValueError(
            "returns text without token ids: tokenised anew, text need not be what was sampled, and its "
            "log-probabilities would be another response's; use one that knows return_token_ids, as vLLM and SGLang do"
        )
    if prompt_ids is not None and list(prompt_ids) != list(prompt):
        raise ValueError(f"read another prompt than it was sent ({len(prompt_ids)} tokens instead of {len(prompt)})")
    if not (isinstance(token_ids, list) and token_ids and all(type(token) is int for token in token_ids)):
        raise ValueError(f"gave {str(token_ids)[:80]} for token ids")
    outside = [token for token in token_ids if not 0 <= token < limits.vocabulary]
    if outside:
        raise ValueError(
            f"sampled token {outside[0]}, outside the policy's vocabulary of {limits.vocabulary}: it has another model"
        )
    if len(token_ids) > limits.max_tokens:
        raise ValueError(f"sampled {len(token_ids)} tokens where at most {limits.max_tokens} were asked for")
    finished = token_ids[-1] == limits.end_of_text
    if limits.end_of_text in token_ids[:-1]:
        raise ValueError(f"went on after the end of text (token {limits.end_of_text}): it takes another one for it")
    if not finished and len(token_ids) < limits.max_tokens:
        raise ValueError(
            f"ended a response after {len(token_ids)} of {limits.max_tokens} tokens, without the end of text (token "
            f"{limits.end_of_text}), for the reason {choice.finish_reason!r}: give it room for prompt and response "
            "(vLLM's --max-model-len), and let nothing else end a response (--generation-config vllm)"
        )
    log_probs = choice.logprobs.token_logprobs if choice.logprobs else None
    if not log_probs or len(log_probs) != len(token_ids) or None in log_probs:
        log_probs = None
    return SampledResponse(token_ids, finished, log_probs)


def _way_out(status: int) -> str:
    if status in (401, 403):
        return f"set {API_KEY_VARIABLE} to its key"
    if status == 404:
        return "check --sampler-url, which ends with /v1 as a rule, and --sampler-model"
    if status >= 500 or status == 429:
        return "see its own log"
    return "expected a server that takes prompts as token ids and returns those of the response, as vLLM and SGLang do"
