import pytest
import torch
from lightning.pytorch.callbacks import Callback

from overopt.models.policy import load_policy
from overopt.modules.sft import SFTModule
from tiny import FAST, TINY, Losses


def nats_per_token(policy, examples, tokenizer) -> tuple[float, float]:
    """Nats per response token and per response, one example at a time through the stock forward."""
    nats, tokens = 0.0, 0
    for example in examples:
        prompt = tokenizer(example.prompt.text).input_ids
        response = [*tokenizer(example.response).input_ids, tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = policy.causal_lm(input_ids=torch.tensor([prompt + response])).logits[0]
        log_probs = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        nats -= float(log_probs[torch.arange(len(response)), torch.tensor(response)].sum())
        tokens += len(response)
    return nats / tokens, nats / len(examples)


def test_the_loss_at_the_start_is_nats_a_response(make_data, make_trainer, sft_checkpoint):
    losses, data = Losses(), make_data(batch_size=100, tokenizer=str(sft_checkpoint))
    make_trainer(callbacks=[losses]).fit(SFTModule(str(sft_checkpoint), optimizer=FAST), datamodule=data)
    _, expected = nats_per_token(load_policy(sft_checkpoint), data.train_set.examples, data.tokenizer)
    assert losses.by_examples == {32: pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("micro_batch_tokens", [60, 200, 4096])
def test_validation_counts_every_token_once_whatever_the_batches(
    make_data, make_trainer, sft_checkpoint, micro_batch_tokens
):
    data = make_data(micro_batch_tokens=micro_batch_tokens, tokenizer=str(sft_checkpoint))
    trainer = make_trainer(limit_val_batches=1.0)
    (metrics,) = trainer.validate(SFTModule(str(sft_checkpoint)), datamodule=data, verbose=False)
    expected, _ = nats_per_token(load_policy(sft_checkpoint), data.evaluation_set.examples, data.tokenizer)
    assert metrics["val/nll_per_token"] == pytest.approx(expected, rel=1e-5)
    (tested,) = trainer.test(SFTModule(str(sft_checkpoint)), datamodule=data, verbose=False)
    assert tested["test/nll_per_token"] == metrics["val/nll_per_token"]


class Logged(Callback):
    """Mean response tokens, as the training step logs them."""

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.tokens = float(trainer.callback_metrics["train/response_tokens"])


def test_the_mean_length_is_over_the_steps_examples(make_data, make_trainer):
    logged, data = Logged(), make_data(batch_size=100, micro_batch_tokens=60)
    make_trainer(callbacks=[logged]).fit(SFTModule(architecture=TINY), datamodule=data)
    lengths = [len(row.response_ids) for row in data.train_set.tokenized]
    assert logged.tokens == pytest.approx(sum(lengths) / len(lengths), rel=1e-6)


def test_a_fresh_policy_has_the_datas_vocabulary_and_room_for_its_sequences(make_data, make_trainer):
    data = make_data(max_prompt_tokens=44, max_response_tokens=17, vocab_size=290)
    module = SFTModule(architecture=TINY)
    make_trainer(max_steps=1).fit(module, datamodule=data)
    config = module.policy.causal_lm.config
    assert (config.vocab_size, config.max_position_embeddings) == (290, 61)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)


def test_weights_follow_the_global_seed(make_data, make_trainer):
    def first_loss(seed: int) -> float:
        losses = Losses()
        torch.manual_seed(seed)
        make_trainer(max_steps=1, callbacks=[losses]).fit(SFTModule(architecture=TINY), datamodule=make_data())
        return next(iter(losses.by_examples.values()))

    assert first_loss(1) == first_loss(1) != first_loss(2)
