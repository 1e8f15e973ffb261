"""Tokenizers out of .gguf files beside those that they were written from."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from backends.bundled import bundled_path
from backends.errors import ModelLoadError
from backends.gguf.file import GgufFile
from backends.gguf.pretokenizers import STYLES, pre_tokenizer
from backends.gguf.tokens import read_tokens
from backends.llm import LLM, SamplingParams
from backends.tokenizer import Tokenizer
from tests.backends import tiny_tokenizers
from tests.backends.gguf.writer import write_gguf

TEXTS = (
    "What is 2 + 3?",
    "héllo wörld, 你好 🙂\n\n  tabs\tand 12345 digits  ",
    "   leading",
    "I'LL we've DON'T x=1;\r\n\r\ny",
    "",
    "\u00a0\u2003 odd spaces ½ ²",
)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled nano as a file."""
    return write_gguf(bundled_path("nano"), tmp_path_factory.mktemp("nano") / "nano.gguf", "F16")


def test_byte_level_tokenizer_is_the_folders_own(nano: Path) -> None:
    """Ids, text, ends of answers, chat template, and special tokens that users type as text."""
    ours, theirs = Tokenizer.from_folder(nano), Tokenizer.from_folder(bundled_path("nano"))
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=True) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    for chat in ("Hi there", "an <|im_end|> in between", "2+2"):
        messages = [{"role": "user", "content": chat}]
        assert ours.encode_chat(messages) == theirs.encode_chat(messages)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.special_token_ids == theirs.special_token_ids
    assert ours.eos_token_ids == (4,)  # The file names one; a folder's generation_config more.
    assert ours.bos_token_id == theirs.bos_token_id == 1


def test_answers_are_those_of_the_folder(nano: Path) -> None:
    """Greedy answers to chats, from the file's own prompt to the end that it names."""
    params = SamplingParams(temperature=0.0, max_tokens=12)
    chats = [[{"role": "user", "content": text}] for text in ("What is 2 + 3?", "Hello!")]
    file, folder = (
        LLM(str(model), dtype="float32", max_model_len=256).chat(chats, params)
        for model in (nano, bundled_path("nano"))
    )
    assert [one.outputs[0].token_ids for one in file] == [
        one.outputs[0].token_ids for one in folder
    ]
    assert file[0].outputs[0].finish_reason == "stop"


def test_sentencepiece_tokenizer_is_the_one_it_came_from(tmp_path: Path) -> None:
    """Word-start marks, bytes for what is in no token, and a token at the beginning."""
    theirs = tiny_tokenizers.sentencepiece()
    theirs.save(str(tmp_path / "tokenizer.json"))
    found = read_tokens(_file(_metadata(json.loads(theirs.to_str()))))
    for text in ("hello hello", "held", "ä hello, 你", " hello", "helloworld"):
        assert found.rust.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids
    ids = theirs.encode("hello ä").ids
    assert found.rust.encode("hello ä").ids == [1, *ids]
    wrapped = Tokenizer(found.rust, name="sentencepiece")
    assert wrapped.decode(ids) == "hello ä"
    assert found.eos_token_ids == (2,)
    assert found.named == {"bos_token": "<s>", "eos_token": "</s>"}


def _metadata(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece tokenizer.json."""
    ranks = {"".join(pair): -float(rank) for rank, pair in enumerate(raw["model"]["merges"])}
    tokens = sorted(raw["model"]["vocab"], key=raw["model"]["vocab"].__getitem__)
    kinds = [2, 3, 3] + [6 if text.startswith("<0x") else 1 for text in tokens[3:]]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [ranks.get(text, -1e6) for text in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | changes


def _file(metadata: dict[str, Any]) -> GgufFile:
    return GgufFile(Path("m.gguf"), (), metadata, {})


def _llama3(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer of Llama 3's kind: four letters, two merges, three special tokens."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [
            *("a", "b", "c", "ab", "abc", "cab"),
            *("<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", "<tool>"),
        ],
        "tokenizer.ggml.token_type": [1] * 6 + [3, 3, 3, 4],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.bos_token_id": 6,
        "tokenizer.ggml.eos_token_id": 8,
    } | changes


def test_special_tokens_begin_and_end_texts() -> None:
    """Llama 3's way: a beginning unless the file says no, both of its ends, user-defined tokens."""
    found = read_tokens(_file(_llama3()))
    assert found.rust.encode("abc").ids == [6, 4]
    assert found.eos_token_ids == (7, 8)
    assert found.rust.encode("ab<tool>c", add_special_tokens=False).ids == [3, 9, 2]
    specials = {i for i, t in found.rust.get_added_tokens_decoder().items() if t.special}
    assert specials == {6, 7, 8}
    # A piece that is a token as a whole needs no merges.
    assert found.rust.encode("cab", add_special_tokens=False).ids == [5]
    quiet = read_tokens(_file(_llama3(**{"tokenizer.ggml.add_bos_token": False})))
    assert quiet.rust.encode("abc").ids == [4]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"tokenizer.ggml.model": "bert"}, "tokenizer of kind 'bert'"),
    "none": ({"tokenizer.ggml.model": None}, "tokenizer of kind None"),
    "pre": ({"tokenizer.ggml.pre": "martian"}, "cuts text by 'martian'"),
    "merges": ({"tokenizer.ggml.merges": ["a z"]}, "its tokenizer is damaged"),
    "no_pair": ({"tokenizer.ggml.merges": ["ab"]}, "merge 'ab' is no pair"),
    "types": ({"tokenizer.ggml.token_type": [1]}, "10 tokens, but 1 types"),
    "tokens": ({"tokenizer.ggml.tokens": [1, 2]}, "no list of strings"),
    "eos": ({"tokenizer.ggml.eos_token_id": 10}, "eos_token_id is 10, but there are 10 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tokenizers_that_cannot_be_read_are_refused(case: str) -> None:
    """What, which, and of which file."""
    changes, words = REFUSED[case]
    with pytest.raises(ModelLoadError, match=words) as caught:
        read_tokens(_file(_llama3(**changes)))
    assert "m.gguf" in str(caught.value)


def _pieces(name: str, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer(STYLES[name]).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'm 1234 ok", ["I", "'m", "Ġ1234", "Ġok"]),
        ("smollm", "I'm 12 ok", ["I", "'m", "Ġ", "1", "2", "Ġok"]),
        ("llama-bpe", "I'M 12345 ok", ["I", "'M", "Ġ", "123", "45", "Ġok"]),
        ("qwen2", "I'M 123\n\nok", ["I", "'M", "Ġ", "1", "2", "3", "ĊĊ", "ok"]),
        ("tekken", "HelloWorld 12/\n", ["Hello", "World", "Ġ", "1", "2", "/Ċ"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", "Ġ", "123", "4"]),
        ("default", "a=b 12345", ["a", "=", "b", "Ġ", "123", "45"]),
    ],
)
def test_text_is_cut_as_the_name_says(name: str, text: str, pieces: list[str]) -> None:
    """Words, endings, digits by one or by three, lines."""
    assert _pieces(name, text) == pieces


@pytest.mark.parametrize("name", STYLES)
def test_every_way_to_cut_keeps_all_bytes(name: str) -> None:
    """Whatever is cut, put together it is the text."""
    style = pre_tokenizer(STYLES[name])
    decoder = tokenizers.decoders.ByteLevel()
    for text in TEXTS:
        assert decoder.decode([piece for piece, _ in style.pre_tokenize_str(text)]) == text


def test_missing_name_of_a_cut_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """As llama.cpp does: the default, and a warning."""
    with caplog.at_level("WARNING"):
        read_tokens(_file(_llama3(**{"tokenizer.ggml.pre": None})))
    assert "gguf_pre_tokenizer_missing" in caplog.text


def test_chat_template_of_the_file_is_used(tmp_path: Path) -> None:
    """Also the one for tools, and the names of special tokens in it."""
    folder = tiny_tokenizers.save_folder(tmp_path / "m")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((bundled_path("nano") / name).read_bytes())
    tools = "{{ bos_token }}tools: {{ tools | length }}"
    more = {"tokenizer.chat_template.tool_use": tools}
    file = write_gguf(folder, tmp_path / "m.gguf", pre="gpt-2", more=more)
    ours, theirs = Tokenizer.from_folder(file), Tokenizer.from_folder(folder)
    messages = [{"role": "user", "content": "the dog"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)
    assert ours.apply_chat_template(messages, tools=[{}]) == "<|bos|>tools: 1"
    assert set(ours.eos_token_ids) == {1, 5}
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_processors_keep_offsets_of_byte_level_texts() -> None:
    """The token at the beginning stands before what `ByteLevel` has done."""
    rust = read_tokens(_file(_llama3())).rust
    assert isinstance(rust.post_processor, processors.Sequence)
    assert rust.encode("abc").offsets == [(0, 0), (0, 3)]
