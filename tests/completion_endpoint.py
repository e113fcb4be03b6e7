"""A real HTTP server on loopback that speaks the completions protocol by token ids, and samples with our own code."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from overopt.data.tokenization import end_of_text_id
from overopt.models.generation import sample_responses
from overopt.models.policy import Policy

Answer = Callable[[dict[str, Any]], tuple[int, Any]]
MODEL = "the-policy"


def completions(policy: Policy) -> Answer:
    """Answers as vLLM does to ``return_token_ids`` and ``logprobs``."""
    lock = threading.Lock()  # requests come side by side, the policy is one

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        if request["model"] != MODEL:
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist."}}
        with lock:
            [response] = sample_responses(
                policy.causal_lm,
                [request["prompt"]],
                eos_token_id=end_of_text_id(policy.tokenizer),
                max_response_tokens=request["max_tokens"],
                seed=request["seed"],
            )
            log_probs = stock_log_probs(policy, request["prompt"], response.token_ids)
        choice = {
            "index": 0,
            "text": policy.tokenizer.decode(response.token_ids),
            "finish_reason": "stop" if response.finished else "length",
            "logprobs": {"token_logprobs": log_probs, "tokens": ["?"] * len(log_probs)},
            "prompt_token_ids": request["prompt"],
            "token_ids": response.token_ids,
        }
        return 200, {"id": "1", "object": "text_completion", "created": 0, "model": MODEL, "choices": [choice]}

    return answer


def stock_log_probs(policy: Policy, prompt: list[int], response: list[int]) -> list[float]:
    """Of each token, by the stock forward pass."""
    with torch.inference_mode():
        logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    log_probs = logits.log_softmax(dim=-1)
    return [float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(response)]


def changed(answer: Answer, change: Callable[[dict[str, Any]], None]) -> Answer:
    """The same answers, their choice changed in place."""

    def other(request: dict[str, Any]) -> tuple[int, Any]:
        status, content = answer(request)
        if status == 200:
            change(content["choices"][0])
        return status, content

    return other


@contextmanager
def served(answer: Answer, models: tuple[str, ...] = (MODEL,)) -> Iterator[str]:
    """The base URL of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*(answer(request) if self.path == "/v1/completions" else (404, {"detail": "Not Found"})))

        def reply(self, status: int, content: Any) -> None:
            is_text = isinstance(content, str)
            body = (content if is_text else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if is_text else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that has given up is no error of the server's."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
