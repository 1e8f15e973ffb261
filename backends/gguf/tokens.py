"""The tokenizer of a .gguf file as one of `tokenizers`. No torch.

======================  ==================================================================
`tokenizer.ggml.model`  what it is
======================  ==================================================================
gpt2                    byte-level BPE: merges, and a way to cut text (`pretokenizers`)
llama                   SentencePiece BPE: scores say which pair merges first; what is in no
                        token becomes bytes
======================  ==================================================================
"""

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import ByteLevel, TemplateProcessing
from tokenizers.processors import Sequence as Processors

from backends.errors import ModelLoadError
from backends.gguf.file import GgufFile
from backends.gguf.pretokenizers import STYLES, Style, pre_tokenizer

log = logging.getLogger(__name__)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_ENDINGS: Final = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|eot|>",
    "</s>",
)
"""Control tokens that end an answer though the file may name another one."""


class GgufTokens(NamedTuple):
    """A tokenizer and what belongs to it."""

    rust: Tokenizer
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    named: dict[str, str]
    """Texts of the tokens that a chat template may name, such as bos_token."""
    chat_template: str | None
    tools_template: str | None


def read_tokens(file: GgufFile) -> GgufTokens:
    """Read the tokenizer.

    Raises:
        ModelLoadError: it is of a kind that we do not read, or what belongs to it is missing.
    """
    model = file.find("tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise ModelLoadError(
            f"{str(file.path)!r} has a tokenizer of kind {model!r}; we read: 'gpt2' (byte-level "
            "BPE) and 'llama' (SentencePiece BPE)"
        )
    tokens = file.need("tokenizer.ggml.tokens", list)
    kinds = file.find("tokenizer.ggml.token_type", list) or [_NORMAL] * len(tokens)
    _check(file, tokens, kinds)
    rust = _byte_level(file, tokens) if model == "gpt2" else _sentencepiece(file, tokens, kinds)
    rust.add_tokens(
        [
            AddedToken(text, special=kind != _USER_DEFINED, normalized=False)
            for text, kind in zip(tokens, kinds, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    bos = _token_id(file, "bos", len(tokens))
    begins = file.find("tokenizer.ggml.add_bos_token", bool)
    if begins is None:
        begins = model == "llama" or _style(file).begins
    if begins and bos is not None:
        _begin_with(rust, tokens[bos], bos)
    named = {"bos": bos, "eos": _token_id(file, "eos", len(tokens))}
    named |= {"unk": _token_id(file, "unknown", len(tokens))}
    named |= {"pad": _token_id(file, "padding", len(tokens))}
    ends = {_token_id(file, name, len(tokens)) for name in ("eos", "eot", "eom")}
    ends |= {
        place for place, text in enumerate(tokens) if text in _ENDINGS and kinds[place] == _CONTROL
    }
    return GgufTokens(
        rust,
        tuple(sorted(place for place in ends if place is not None)),
        bos,
        {f"{name}_token": tokens[place] for name, place in named.items() if place is not None},
        file.find("tokenizer.chat_template", str),
        file.find("tokenizer.chat_template.tool_use", str),
    )


def _check(file: GgufFile, tokens: Sequence[Any], kinds: Sequence[Any]) -> None:
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelLoadError(f"{str(file.path)!r}: tokenizer.ggml.tokens is no list of strings")
    if len(kinds) != len(tokens):
        raise ModelLoadError(
            f"{str(file.path)!r} has {len(tokens)} tokens, but {len(kinds)} types of tokens"
        )


def _style(file: GgufFile) -> Style:
    name = file.find("tokenizer.ggml.pre", str)
    if name is None:
        log.warning(
            "gguf_pre_tokenizer_missing: %s says not how text is cut; text is cut by llama.cpp's "
            "default, and answers may be worse",
            file.path,
        )
        name = "default"
    if name not in STYLES:
        raise ModelLoadError(
            f"{str(file.path)!r} cuts text by {name!r} (tokenizer.ggml.pre), which we do not know; "
            f"we know: {', '.join(STYLES)}; give the model's Hugging Face folder instead"
        )
    return STYLES[name]


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    style = _style(file)
    merges = [_pair(file, merge) for merge in file.need("tokenizer.ggml.merges", list)]
    rust = Tokenizer(_bpe(file, tokens, merges, ignore_merges=style.whole_words))
    rust.pre_tokenizer = pre_tokenizer(style)
    rust.post_processor = ByteLevel(trim_offsets=False)
    rust.decoder = decoders.ByteLevel()
    return rust


def _pair(file: GgufFile, merge: Any) -> tuple[str, str]:
    left, space, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
    if not (left and space and right):
        raise ModelLoadError(f"{str(file.path)!r}: its tokenizer's merge {merge!r} is no pair")
    return left, right


def _sentencepiece(file: GgufFile, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    scores = file.need("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise ModelLoadError(
            f"{str(file.path)!r} has {len(tokens)} tokens, but {len(scores)} scores"
        )
    unknown = next((tokens[i] for i, kind in enumerate(kinds) if kind == _UNKNOWN), None)
    rust = Tokenizer(
        _bpe(
            file,
            tokens,
            _merges(tokens, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.find("tokenizer.ggml.add_space_prefix", bool)
    begin = [] if prefix is False else [normalizers.Prepend("▁")]
    rust.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
    strip = [] if prefix is False else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    rust.decoder = decoders.Sequence([*steps, *strip])
    return rust


def _bpe(
    file: GgufFile, tokens: Sequence[str], merges: Sequence[tuple[str, str]], **options: Any
) -> models.BPE:
    vocabulary = {text: place for place, text in reversed(list(enumerate(tokens)))}
    try:
        return models.BPE(vocab=vocabulary, merges=list(merges), **options)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise ModelLoadError(f"{str(file.path)!r}: its tokenizer is damaged: {error}") from error


def _merges(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that make a token, the one of the highest score first."""
    place = {text: index for index, text in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for text, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in place and right in place:
                found.append((-score, -place[left], -place[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _token_id(file: GgufFile, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    place = file.find(key, int)
    if place is not None and place >= size:
        raise ModelLoadError(f"{str(file.path)!r}: {key} is {place}, but there are {size} tokens")
    return None if place is None else int(place)


def _begin_with(rust: Tokenizer, text: str, place: int) -> None:
    """Put the begin-of-sequence token before texts that are encoded with special tokens."""
    first = TemplateProcessing(single=f"{text}:0 $A:0", special_tokens=[(text, place)])
    before = rust.post_processor
    rust.post_processor = first if before is None else Processors([before, first])
