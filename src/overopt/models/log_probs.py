"""Response log-probabilities, with the output head on response positions only."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel


def response_log_probs(
    causal_lm: PreTrainedModel,
    input_ids: Int[Tensor, "sequence token"],
    response_mask: Bool[Tensor, "sequence token"],
) -> Float[Tensor, "sequence token"]:
    """Log-probability of each response token given all before it [nats], in float32.

    Sequences are padded on the right, so a causal model needs no attention mask: padding comes after
    everything that is read. The [sequence, token, vocabulary] tensor never exists: logits are made at the
    positions that predict a response token, and nowhere else.

    Args:
        causal_lm: any Hugging Face causal LM whose logits are its output embedding of the last hidden state.
        input_ids: prompt, response, padding.
        response_mask: true on the response's tokens. Position 0 has no prediction and must not be one of them.

    Returns:
        The log-probability at each response token's own position; zero elsewhere.
    """
    hidden = causal_lm.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    predicted = response_mask[:, 1:]  # position t is predicted from the hidden state at t - 1
    logits = causal_lm.get_output_embeddings()(hidden[:, :-1][predicted])
    token_log_probs = -F.cross_entropy(logits.float(), input_ids[:, 1:][predicted], reduction="none")
    log_probs = torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device)
    return log_probs.masked_scatter(F.pad(predicted, (1, 0)), token_log_probs)
