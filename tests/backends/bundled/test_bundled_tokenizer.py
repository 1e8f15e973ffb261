"""The shipped tokenizer: any text goes through it and back, in ids the models have."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.bundled import BUNDLED_MODELS, UnknownBundledModelError, bundled_path
from backends.bundled.config import VOCAB_SIZE
from backends.bundled.errors import TokenizerError
from backends.bundled.tokenizer import SPECIAL_TOKENS, load_tokenizer, prompt_text

TOKENIZER = load_tokenizer(bundled_path("nano") / "tokenizer.json")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_tokenizer_returns_any_text_unchanged(text: str) -> None:
    """Any UTF-8 text survives encoding and decoding, within the vocabulary."""
    ids = TOKENIZER.encode(text).ids
    assert all(0 <= token < VOCAB_SIZE for token in ids)
    if not any(token in text for token in SPECIAL_TOKENS):
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_tokenizer_keeps_digits_single() -> None:
    """A number is as many tokens as it has digits."""
    assert TOKENIZER.encode("90210").tokens == list("90210")


def test_tokenizer_is_the_same_in_both_models() -> None:
    """The models share a tokenizer, so that one can draft for the other."""
    files = {(bundled_path(name) / "tokenizer.json").read_bytes() for name in BUNDLED_MODELS}
    assert len(files) == 1


def test_chat_template_renders_chatml() -> None:
    """Transformers loads the folder and renders turns as the recipe trained them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundled_path("small"))
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    one = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert one == prompt_text("Hi")
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("2 + 3").input_ids == TOKENIZER.encode("2 + 3").ids


def test_load_tokenizer_names_a_file_it_cannot_read(tmp_path: Path) -> None:
    """A missing or damaged tokenizer is named in the error."""
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(path)
    path.write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(path)


def test_bundled_path_names_the_known_models() -> None:
    """An unknown name is refused with the names there are."""
    with pytest.raises(UnknownBundledModelError, match="nano, small"):
        bundled_path("huge")
