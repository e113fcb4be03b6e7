"""The rate at which this machine multiplies matrices of a model's own shapes: the limit that training is held to."""

import time

import numpy as np
import torch
from contenders.measured import synchronise
from workload import Shape


def matrix_product_rate(shape: Shape, vocabulary: int, device: str, tokens: int = 2048, repeats: int = 10) -> float:
    """The fastest of the model's three widest layers [FLOP/s]: into the MLP, out of it, output head; medians.

    In float32 on CPUs, bfloat16 on GPUs, as training computes.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    layers = [(shape.hidden, 4 * shape.hidden), (4 * shape.hidden, shape.hidden), (shape.hidden, vocabulary)]
    return max(_rate(tokens, *layer, device, dtype, repeats) for layer in layers)


def _rate(tokens: int, inputs: int, outputs: int, device: str, dtype: torch.dtype, repeats: int) -> float:
    states = torch.randn(tokens, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats + 2):  # the first two warm up
        synchronise()
        start = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return 2 * tokens * inputs * outputs / float(np.median(seconds[2:]))
