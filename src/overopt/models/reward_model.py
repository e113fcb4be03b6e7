"""A reward model: a scalar head on a causal LM's backbone."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from overopt.checkpoints.format import REWARD_PREFIX, ModelDescription, read_model_checkpoint
from overopt.models.compute import ComputeSettings
from overopt.models.grouped_attention import hidden_states
from overopt.models.policy import Policy
from overopt.packed_tokens import PackedTokens


class RewardModel(nn.Module):
    """r(x, y): the scalar head reads the hidden state at the response's last token (Eq. 1 and 2).

    The head has no bias: only differences of rewards have meaning.

    Args:
        backbone: that :meth:`overopt.models.compute.ComputeSettings.apply` has been called for.
        tokenizer: the model's.
    """

    def __init__(self, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.head = nn.Linear(backbone.config.hidden_size, 1, bias=False)
        # Every reward starts at zero, so the first loss is log 2 and no pair is favoured by chance.
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: PackedTokens) -> Float[Tensor, " response"]:
        """Reward of each response, in float32."""
        reward: Tensor = self.head(hidden_states(self.backbone, tokens)[tokens.ends]).squeeze(-1).float()
        return reward

    def describe(self) -> ModelDescription:
        """What a checkpoint must hold besides weights so that it can be opened alone."""
        return ModelDescription.of(self.backbone.config, self.tokenizer)


def reward_model_from_policy(policy: Policy) -> RewardModel:
    """A reward model on the policy's backbone, which it takes over (it is not copied)."""
    return RewardModel(policy.causal_lm.base_model, policy.tokenizer)


def load_reward_model(path: str | Path) -> RewardModel:
    """Open a reward model that :mod:`overopt.modules.reward_modeling` trained.

    Raises:
        ValueError: no such file, or it holds no reward model.
    """
    if not Path(path).is_file():
        raise ValueError(f"no reward model at {path}: expected a .ckpt file")
    checkpoint = read_model_checkpoint(Path(path), REWARD_PREFIX)
    backbone = AutoModel.from_config(checkpoint.description.config(), trust_remote_code=False)
    ComputeSettings().apply(backbone)
    reward_model = RewardModel(backbone, checkpoint.description.tokenizer())
    reward_model.load_state_dict(checkpoint.weights)
    return reward_model
