import numpy as np
import pytest
import torch

from overopt.models.compute import ComputeSettings
from overopt.models.policy import Policy
from overopt.packed_tokens import PromptGroup, pack
from tiny import seeded_policy


def gradient_and_peak(policy: Policy) -> tuple[torch.Tensor, int]:
    """Of three pairs' log-probabilities; and the most activations' bytes that autograd kept at a time."""
    ids = np.random.default_rng(0).integers(2, len(policy.tokenizer), (3, 20))
    tokens = pack([PromptGroup(row[:6], (row[6:12], row[12:])) for row in ids])
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    policy.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs = policy(tokens)
    kept_forward = kept
    log_probs.sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]), kept_forward


def policy_with(compute: ComputeSettings, tokenizer) -> Policy:
    return Policy(seeded_policy(0, tokenizer, scale=5.0).causal_lm, tokenizer, compute)


def test_activation_checkpointing_keeps_less_and_changes_no_gradient(tiny_tokenizer):
    plain, kept_by_plain = gradient_and_peak(policy_with(ComputeSettings(), tiny_tokenizer))
    again, kept = gradient_and_peak(policy_with(ComputeSettings(activation_checkpointing=True), tiny_tokenizer))
    assert (again - plain).norm() < 1e-6 * plain.norm()
    assert kept < 0.6 * kept_by_plain


def test_the_backbone_is_compiled_on_request(tiny_tokenizer, monkeypatch):
    compiled = []
    # The compiler itself needs a C++ compiler and minutes: that it is asked for the backbone is enough here.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options)))
    policy = policy_with(ComputeSettings(compile=True), tiny_tokenizer)
    assert compiled == [(policy.causal_lm.base_model, {"dynamic": True})]


@pytest.mark.parametrize("logits_mib", [0, -1.0])
def test_no_room_for_logits_is_refused(logits_mib):
    with pytest.raises(ValueError, match="need logits_mib > 0, got"):
        ComputeSettings(logits_mib=float(logits_mib))
