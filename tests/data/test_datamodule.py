import json

import numpy as np
import pytest
import torch

from overopt.data.datamodule import PreferenceDataModule
from tiny import NUM_POSTS, sampled_pairs


def posts(data: PreferenceDataModule) -> tuple[set[str], set[str]]:
    data.setup("fit")
    return {e.post_id for e in data.train_set.examples}, {e.post_id for e in data.evaluation_set.examples}


@pytest.mark.parametrize("examples", ["demonstrations", "preferences"])
def test_the_parts_share_no_post_and_leave_none_out(make_data, examples):
    train, evaluation = posts(make_data(examples=examples))
    gold, same_evaluation = posts(make_data(examples=examples, part="gold"))
    assert evaluation == same_evaluation
    assert min(len(train), len(evaluation), len(gold)) >= 3
    assert len(train) + len(evaluation) + len(gold) == len(train | evaluation | gold) == NUM_POSTS


def test_the_evaluation_part_does_not_depend_on_the_gold_part(make_data):
    _, evaluation = posts(make_data(gold_fraction=0.0))
    assert posts(make_data(gold_fraction=0.5))[1] == evaluation


@pytest.fixture
def published_folder(tmp_path, preference_folder):
    """The tiny preferences with every fourth post published as held out; post 1 of training is there once more."""
    folder = tmp_path / "published"
    folder.mkdir()
    for file in preference_folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["split"] = "train" if int(row["post_id"].removeprefix("post ")) % 4 else "valid"
        again = [rows[1] | {"id": f"{rows[1]['id']} again", "split": "valid"}]
        (folder / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows + again))
    return folder


@pytest.mark.parametrize("examples", ["demonstrations", "preferences"])
def test_published_splits_are_trained_on_and_held_out_as_they_come(make_data, published_folder, examples):
    data = make_data(
        path=str(published_folder), examples=examples, splits="published", evaluation_fraction=None, gold_fraction=0.0
    )
    train, evaluation = posts(data)
    assert evaluation == {f"post {i}" for i in range(0, NUM_POSTS, 4)}
    assert train == {f"post {i}" for i in range(NUM_POSTS)} - evaluation
    assert len(data.train_set) == len(train)  # what another split says of post 1 is in no part
    assert len(data.evaluation_set) == len(evaluation)
    assert {e.post_id for e in data.held_out_preferences().examples} == evaluation
    assert data.split_statement.endswith("(2 examples left out); trained on train")


def test_the_gold_part_of_published_splits_comes_out_of_train(make_data, published_folder):
    settings = {"path": str(published_folder), "splits": "published", "evaluation_fraction": None, "gold_fraction": 0.3}
    train, evaluation = posts(make_data(**settings))
    gold, same_evaluation = posts(make_data(**settings, part="gold"))
    assert evaluation == same_evaluation == {f"post {i}" for i in range(0, NUM_POSTS, 4)}
    assert min(len(gold), len(train)) > 3
    assert len(train | gold) == len(train) + len(gold) == NUM_POSTS - len(evaluation)


def test_data_that_names_no_splits_is_refused_with_the_way_out(make_data):
    data = make_data(splits="published", evaluation_fraction=None)
    with pytest.raises(ValueError, match=r"120 of 120 examples of source jsonl name none.*--data\.splits at hash"):
        data.setup("fit")


def test_demonstrations_and_preferences_of_a_post_are_in_the_same_part(make_data):
    assert posts(make_data(examples="demonstrations")) == posts(make_data(examples="preferences"))


def test_held_out_examples_of_both_kinds_are_there_whatever_is_trained_on(make_data):
    for examples in ("demonstrations", "preferences"):
        data = make_data(examples=examples)
        _, evaluation = posts(data)
        assert {e.post_id for e in data.held_out_demonstrations().examples} == evaluation
        assert {e.post_id for e in data.held_out_preferences().examples} == evaluation


def test_the_fingerprint_names_the_examples_and_nothing_else(make_data, tmp_path, preference_folder):
    def fingerprint(**changes) -> str:
        data = make_data(**changes)
        data.setup("fit")
        return data.fingerprint

    here = fingerprint()
    assert fingerprint(batch_size=3, seed=7, vocab_size=280) == here
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in preference_folder.glob("*.jsonl"):
        (changed / file.name).write_text(file.read_text().replace("Post 0:", "Post zero:"))
    others = [fingerprint(path=str(changed)), fingerprint(part="gold"), fingerprint(max_examples=5)]
    assert len({here, *others}) == 4


def test_pairs_are_tokenised_as_the_source_has_them(make_data):
    data = make_data(examples="preferences")
    data.setup("fit")
    by_id = {pair.id: pair for pair in sampled_pairs()}
    batch = data.train_set.collate([2, 0])
    text = ""
    for row, place in enumerate([2, 0]):
        pair = by_id[data.train_set.examples[place].example_id]
        text += pair.prompt
        for number, response in ((2 * row, pair.first), (2 * row + 1, pair.second)):
            targets = batch.tokens.targets[batch.tokens.responses == number]
            assert data.tokenizer.decode(targets) == response + "<|endoftext|>"
            text += response + "<|endoftext|>"
    assert data.tokenizer.decode(batch.tokens.input_ids[0]) == text  # each prompt once
    assert batch.reference_log_probs.isnan().all()


def test_reference_log_probs_go_with_their_pairs(make_data):
    data = make_data(examples="preferences")
    data.setup("fit")
    size = len(data.train_set)
    # Chosen responses of pair i: i; rejected ones: 1000 + i.
    data.train_set.reference_log_probs = np.arange(size)[:, None] + np.array([0, 1000], dtype=np.float32)
    assert data.train_set.collate([4, 1, 7]).reference_log_probs.tolist() == [[4, 1004], [1, 1001], [7, 1007]]


def test_a_limit_keeps_examples_by_their_posts_whatever_their_order(make_data):
    few, more = (posts(make_data(max_examples=n))[0] for n in (5, 12))
    assert len(few) == 5
    assert few < more
    assert posts(make_data(max_examples=10_000))[0] == posts(make_data())[0]


def test_a_limit_of_what_is_held_out_leaves_training_as_it_is(make_data):
    (training, few), (all_training, all_held_out) = posts(make_data(max_evaluation_examples=4)), posts(make_data())
    assert (training, len(few)) == (all_training, 4)
    assert few < all_held_out


def test_setting_up_twice_changes_nothing(make_data):
    data = make_data()
    data.prepare_data()
    data.setup("fit")
    first = data.train_set
    data.setup("validate")
    assert data.train_set is first


def test_the_tokenizer_is_the_policys_where_one_is_given(make_data, sft_checkpoint):
    own, given = make_data(vocab_size=270), make_data(vocab_size=270, tokenizer=str(sft_checkpoint))
    own.setup("fit")
    given.setup("fit")
    assert (len(own.tokenizer), len(given.tokenizer)) == (270, 300)


def test_held_out_posts_teach_the_tokenizer_nothing(make_data, tmp_path, preference_folder):
    data = make_data()
    _, evaluation = posts(data)
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in preference_folder.glob("*.jsonl"):
        text = file.read_text()
        for post in evaluation:
            number = post.removeprefix("post ")
            text = text.replace(f"Post {number}: the cat", f"Post {number}: quetzalcoatl")
        (changed / file.name).write_text(text)
    other = make_data(path=str(changed))
    other.setup("fit")
    assert other.fingerprint != data.fingerprint
    assert other.tokenizer.get_vocab() == data.tokenizer.get_vocab()


def test_loaders_see_each_example_once(make_data):
    data = make_data(batch_size=7)
    data.setup("fit")
    steps = list(data.train_dataloader())
    assert sum(step.num_examples for step in steps) == len(data.train_set)
    assert sum(batch.num_responses for step in steps for batch in step.micro_batches) == len(data.train_set)
    held_out = data.val_dataloader()
    assert len(held_out) > 1
    assert sum(batch.examples.num_responses for batch in held_out) == len(data.evaluation_set)
    for places, batch in zip(held_out.batches, held_out, strict=True):
        assert torch.equal(batch.examples.targets, data.evaluation_set.collate(places).targets)


def test_packing_and_shared_prompts_are_options(make_data):
    shapes = {}
    for shared in (True, False):
        for packed in (True, False):
            data = make_data(examples="preferences", shared_prompts=shared, packed=packed)
            data.setup("fit")
            shapes[shared, packed] = data.train_set.collate([2, 0, 1]).tokens.input_ids.shape
    assert [rows for rows, _ in shapes.values()] == [1, 3, 1, 6]
    assert shapes[True, True][1] < shapes[False, True][1]


def test_an_example_without_room_is_named(make_data):
    with pytest.raises(ValueError, match=r"example 'row \d+' needs \d+ tokens, a forward pass has room for 20"):
        make_data(examples="preferences", micro_batch_tokens=20).setup("fit")


def test_the_tokens_hash_follows_ids_tokens_and_order(make_data):
    def tokens_hash(**changes) -> str:
        data = make_data(examples="preferences", **changes)
        data.setup("fit")
        return data.train_set.tokens_hash

    here = tokens_hash()
    assert tokens_hash(batch_size=3, seed=5) == here
    assert len({here, tokens_hash(max_response_tokens=5), tokens_hash(vocab_size=280), tokens_hash(part="gold")}) == 4
    data = make_data(examples="preferences")
    data.setup("fit")
    data.train_set.tokenized = data.train_set.tokenized[::-1]
    assert data.train_set.tokens_hash != here


def test_its_settings_are_kept_in_checkpoints(sft_checkpoint):
    kept = torch.load(sft_checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    again = PreferenceDataModule(**kept)
    again.setup("fit")
    assert len(again.train_set) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens=0"),
        ({"max_examples": 0}, "max_examples=0"),
        ({"max_evaluation_examples": 0}, "max_evaluation_examples must be at least 1, got 0"),
        ({"source": "nowhere"}, "no data source 'nowhere'"),
        ({"evaluation_fraction": 0.7, "gold_fraction": 0.3}, "split fractions"),
        ({"splits": "published"}, "published splits say what is held out, got evaluation_fraction=0.3 too"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_once(make_data, changes, message):
    with pytest.raises(ValueError, match=message):
        make_data(**changes)


def test_a_part_without_posts_is_refused_with_the_way_out(make_data):
    with pytest.raises(ValueError, match=r"none of the 60 demonstrations .* falls into part 'gold'.*other fractions"):
        make_data(part="gold", gold_fraction=0.0).setup("fit")


def test_a_source_without_pairs_is_refused(make_data, tmp_path):
    (tmp_path / "only.jsonl").write_text('{"prompt": "a cat", "response": "yes"}\n')
    with pytest.raises(ValueError, match="source jsonl holds no preferences"):
        make_data(path=str(tmp_path / "only.jsonl"), examples="preferences").setup("fit")
