"""How text is cut before byte-pair merges, by the name that a .gguf file gives. No torch.

The names are llama.cpp's (`tokenizer.ggml.pre`), the patterns those of the models' own tokenizers.
"""

from typing import Final, NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split


class Style(NamedTuple):
    """One way to cut."""

    patterns: tuple[str, ...]
    """Each cuts what those before it left whole."""
    begins: bool = False
    """Whether a text begins with the begin-of-sequence token, unless the file says otherwise."""
    whole_words: bool = False
    """Whether a piece that is a token stays one, whatever merges would make of it."""


_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2: Final = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_CASED: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN: Final = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED}"
_GPT4O: Final = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENGLISH}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENGLISH}?"
    rf"|\p{{N}}{{1,3}}|{_CASED}"
)

_PLAIN: Final = Style((_GPT2,))
_DIGITS: Final = Style((r"\p{N}", _GPT2))
_THREE_DIGITS: Final = Style((_LLAMA3,))
_EACH_DIGIT: Final = Style((_QWEN2,))
_LLAMA: Final = Style((_LLAMA3,), begins=True, whole_words=True)
_DEFAULT: Final = Style((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

STYLES: Final[dict[str, Style]] = {
    "default": _DEFAULT,
    "falcon": Style((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _PLAIN),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA),
    **dict.fromkeys(("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), _THREE_DIGITS),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _EACH_DIGIT),
    "tekken": Style((_TEKKEN,), begins=True, whole_words=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Style((_GPT4O,))),
}


def pre_tokenizer(style: Style) -> PreTokenizer:
    """Make what cuts text so and turns its bytes into printable characters."""
    cuts = [Split(Regex(pattern), behavior="isolated") for pattern in style.patterns]
    return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
