from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from overopt.checkpoints.tokenizer import tokenizer_from_json, tokenizer_to_json
from overopt.data.prompt_format import encode_prompts
from overopt.data.tokenization import tokenizer_hash

TEXTS = ["the cat sees a dog .", " The\n\nTL;DR:", "naïve 猫 \U0001f600", "<|endoftext|> spelled out"]


def test_a_tokenizer_read_back_encodes_and_decodes_as_before(tiny_tokenizer):
    read = tokenizer_from_json(tokenizer_to_json(tiny_tokenizer))
    assert tokenizer_hash(read) == tokenizer_hash(tiny_tokenizer)
    assert read.eos_token == tiny_tokenizer.eos_token
    assert read.pad_token_id == tiny_tokenizer.pad_token_id
    ids = encode_prompts(TEXTS, tiny_tokenizer)
    assert encode_prompts(TEXTS, read) == ids
    for row in ids:
        assert read.decode(row) == tiny_tokenizer.decode(row)


def test_a_tokenizer_that_opens_each_text_still_does_when_read_back():
    words = ["<s>", "</s>", "the", "cat", "n't", "do"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    llama_like = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=True
    )
    read = tokenizer_from_json(tokenizer_to_json(llama_like))
    assert encode_prompts(["the cat"], read) == encode_prompts(["the cat"], llama_like) == [[0, 2, 3]]
    assert read.pad_token is None
    assert read.decode([5, 4]) == llama_like.decode([5, 4]) == "don't"
