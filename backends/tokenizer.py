"""Text to token ids and back: a `tokenizers` file, a chat template, an incremental detokenizer.

No torch. Decoding runs on a table from token id to bytes, so text comes out token by token in
constant time and never splits a UTF-8 character.
"""

import codecs
import copy
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from backends.chat_template import ChatTemplate, joined_text
from backends.errors import ModelLoadError

_SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A model folder's tokenizer.

    Attributes:
        vocab_size: ids run from 0 to vocab_size - 1, added tokens included.
        eos_token_ids: ids that end an answer.
        bos_token_id: None if the model has none.
        special_token_ids: ids that `decode` leaves out.
    """

    def __init__(
        self,
        rust: tokenizers.Tokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
        chat_template: ChatTemplate | None = None,
        name: str = "tokenizer",
    ) -> None:
        self.name = name
        self.vocab_size: int = rust.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = tuple(eos_token_ids)
        self.bos_token_id = bos_token_id
        self._rust = rust
        self._template = chat_template
        specials = {i: t.content for i, t in rust.get_added_tokens_decoder().items() if t.special}
        self.special_token_ids = frozenset(specials)
        self._special_ids_by_text = {content: i for i, content in specials.items()}
        longest_first = sorted(specials.values(), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._bytes = _TokenBytes(rust, self.special_token_ids, name)

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read a Hugging Face folder: tokenizer.json and, where present, its config files.

        Args:
            path: The folder; or a .gguf file, which holds all of that itself.

        Raises:
            ModelLoadError: tokenizer.json is missing or unreadable, or decodes in a way that
                cannot be streamed.
        """
        folder = Path(path)
        if folder.suffix == ".gguf" and not folder.is_dir():
            return cls._from_gguf(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelLoadError(f"{str(folder)!r} has no tokenizer.json; save a fast tokenizer")
        try:
            rust = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ModelLoadError(f"{str(file)!r} is no tokenizer: {error}") from error
        rust.no_truncation()
        rust.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        return cls(
            rust,
            eos_token_ids=_eos_token_ids(folder, config, rust),
            bos_token_id=_bos_token_id(folder, config, rust),
            chat_template=ChatTemplate.from_folder(folder, config),
            name=folder.name,
        )

    @classmethod
    def _from_gguf(cls, path: Path) -> "Tokenizer":
        from backends.gguf.file import open_gguf
        from backends.gguf.tokens import read_tokens

        found = read_tokens(open_gguf(path))
        template = found.chat_template and ChatTemplate(
            found.chat_template, tools_source=found.tools_template, tokens=found.named
        )
        return cls(
            found.rust,
            eos_token_ids=found.eos_token_ids,
            bos_token_id=found.bos_token_id,
            chat_template=template or None,
            name=path.name,
        )

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; strings that name special tokens become those tokens."""
        return self._encode(self._rust, text, add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        detokenizer = self.detokenizer()
        return detokenizer.push(ids) + detokenizer.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; a special token's are its name's."""
        return self._bytes.raw(token_id)

    def token_text(self, token_id: int) -> str:
        """One token as text, as log-probabilities show it."""
        return self._bytes.raw(token_id).decode("utf-8", "replace")

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), shown_ids: frozenset[int] = frozenset()
    ) -> "IncrementalDetokenizer":
        """A detokenizer for what follows `prompt_ids`; `shown_ids` are special tokens whose names
        belong to the text."""
        table = self._bytes.showing(shown_ids) if shown_ids else self._bytes
        return IncrementalDetokenizer(table, prompt_ids)

    def token_id(self, text: str) -> int | None:
        """The one token that is this text as it stands, special or not."""
        found: int | None = self._rust.token_to_id(text)
        return found

    def special_token_id(self, text: str) -> int | None:
        """The special token of this name."""
        return self._special_ids_by_text.get(text)

    @property
    def chat_template(self) -> str | None:
        """Source of the template that is used where tools are given."""
        return self._template.tools_source if self._template is not None else None

    @property
    def template_variables(self) -> frozenset[str]:
        """Names that the chat template reads: `tools` where it has a place for them."""
        return frozenset() if self._template is None else self._template.variables

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """Render messages to the model's prompt text.

        For generation prefer `encode_chat`: encoding this text again would turn special-token
        strings that a user typed into real special tokens.

        Raises:
            ModelLoadError: the folder has no chat template.
            InvalidRequestError: the template refuses these messages.
        """
        return self._chat_template().render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **extra
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """Token ids of a chat. Special-token strings inside messages, tools and what else the
        template is told are encoded as plain text.

        Raises: as `apply_chat_template`.
        """
        options = {"add_generation_prompt": add_generation_prompt, **extra}
        told = [value for value in (tools, extra) if value]
        if not _mentions(messages, self._specials) and not (
            told and _mentions(json.dumps(told, ensure_ascii=False), self._specials)
        ):
            return self.encode(self.apply_chat_template(messages, tools=tools, **options))
        # A mark that occurs nowhere else breaks up the user's special-token strings, so that
        # those still whole after rendering are the template's own.
        mark = _unused_character([messages, tools, extra])
        marked = _break_up(messages, self._specials, mark)
        marked_tools = _break_up(tools, self._specials, mark)
        options |= _break_up(extra, self._specials, mark)
        rendered = self._chat_template().render(marked, tools=marked_tools, **options)
        ids: list[int] = []
        start = 0
        for found in self._specials.finditer(rendered):
            ids += self._plain_ids(rendered[start : found.start()].replace(mark, ""))
            ids.append(self._special_ids_by_text[found.group()])
            start = found.end()
        return ids + self._plain_ids(rendered[start:].replace(mark, ""))

    def prompt_token_bound(
        self,
        messages: Sequence[Mapping[str, Any]] | str,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> int:
        """An upper bound of a chat's (or a plain prompt's) tokens, without tokenising.

        A token stands for at least one byte of the normalised UTF-8 text; a word-start mark or an
        automatic begin-of-sequence may add one per piece between special tokens.
        """
        if isinstance(messages, str):
            text = messages
        else:
            text = self._chat_template().render(messages, tools=tools, **extra)
        extras = 2 + sum(1 for _ in self._specials.finditer(text))
        normalizer = self._rust.normalizer
        if normalizer is not None and not text.isascii():
            text = normalizer.normalize_str(text)
        return len(text.encode("utf-8", "surrogatepass")) + extras

    def token_floor(self, text: str) -> int:
        """A lower bound of the tokens of `text`, without tokenising; 0 where none is known."""
        if self._rust.normalizer is not None:
            # It may drop what the text has.
            return 0
        return -(-len(text) // self._longest_token_bytes)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """A second copy, which reads special-token strings as plain text."""
        plain = tokenizers.Tokenizer.from_str(self._rust.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _longest_token_bytes(self) -> int:
        return max(1, *(len(self._bytes.raw(i)) for i in range(self.vocab_size)))

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise ModelLoadError(
                f"model {self.name!r} has no chat template; add chat_template.jinja to its folder "
                "or send /v1/completions"
            )
        return self._template

    def _plain_ids(self, text: str) -> list[int]:
        return self._encode(self._plain, text, False) if text else []

    @staticmethod
    def _encode(rust: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
        # The batch call releases the GIL: a long prompt must not stop the event loop.
        encoded = rust.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoded[0].ids)


class IncrementalDetokenizer:
    """Turns ids into text as they come; what `push` returned never changes afterwards."""

    def __init__(self, table: "_TokenBytes", prompt_ids: Sequence[int]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b"".join(table[i] for i in prompt_ids[-4:])
        self._strip = table.strips_start and not any(table[i] for i in prompt_ids)
        # A prompt of ids may end inside a character: its first bytes belong to our first one.
        begun = _unfinished(tail)
        self._decoder.decode(begun)
        self._begun = bool(begun)
        """Whether the decoder holds part of a character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain with these ids; an unfinished character waits."""
        table = self._table
        if len(token_ids) == 1:
            data = table[token_ids[0]]
        else:
            data = b"".join([table[i] for i in token_ids])
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        if data.isascii() and not self._begun:
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._begun = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """The rest: U+FFFD for an unfinished character."""
        return self._decoder.decode(b"", True) if self._begun else ""


class _TokenBytes(dict[int, bytes]):
    """Token id -> its bytes in running text (b"" for special and unknown ids), filled on use."""

    def __init__(self, rust: tokenizers.Tokenizer, special_ids: frozenset[int], name: str) -> None:
        super().__init__()
        self._rust = rust
        self._special_ids = special_ids
        self._showing: dict[frozenset[int], _TokenBytes] = {}
        self._alphabet = None
        self.strips_start = False
        steps = _decoder_steps(rust)
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            self._alphabet = _byte_level_alphabet()
        elif kinds == ["Metaspace"]:
            self.strips_start = steps[0].get("prepend_scheme", "always") != "never"
        elif "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
            self.strips_start = "Strip" in kinds
        else:
            raise ModelLoadError(
                f"tokenizer of {name!r} decodes with {kinds or 'nothing'}; supported: ByteLevel, "
                "Metaspace, and SentencePiece's Replace + ByteFallback + Fuse"
            )

    def showing(self, shown_ids: frozenset[int]) -> "_TokenBytes":
        """The same of a text in which these special tokens are named."""
        if shown_ids not in self._showing:
            table = copy.copy(self)
            table._special_ids = self._special_ids - shown_ids
            for token_id in shown_ids:
                table.pop(token_id, None)
            self._showing[shown_ids] = table
        return self._showing[shown_ids]

    def __missing__(self, token_id: int) -> bytes:
        data = b"" if token_id in self._special_ids else self.raw(token_id)
        self[token_id] = data
        return data

    def raw(self, token_id: int) -> bytes:
        """A token's bytes, special or not; b"" for an id outside the vocabulary."""
        token = self._rust.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self._alphabet is not None:
            mapped = [self._alphabet.get(character) for character in token]
            if None in mapped:
                return token.encode()
            return bytes(byte for byte in mapped if byte is not None)
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            return bytes.fromhex(byte.group(1))
        return token.replace(_SPACE_MARK, " ").encode()


def _decoder_steps(rust: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    decoder = json.loads(rust.to_str())["decoder"]
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return list(decoder["decoders"])
    return [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


def _unfinished(data: bytes) -> bytes:
    """The bytes at the end of `data` that begin a character and do not finish it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]


def _mentions(value: Any, specials: re.Pattern[str]) -> bool:
    if isinstance(value, str):
        return specials.search(value) is not None
    if isinstance(value, Mapping):
        if isinstance(value.get("content"), list):
            return _mentions({**value, "content": joined_text(value["content"])}, specials)
        return any(_mentions(item, specials) for item in value.values())
    if isinstance(value, Sequence):
        return any(_mentions(item, specials) for item in value)
    return False


def _break_up(value: Any, specials: re.Pattern[str], mark: str) -> Any:
    if isinstance(value, str):
        # A lone mark inside is not enough where one special token's name contains another's.
        return specials.sub(lambda found: mark.join(found.group()), value)
    if isinstance(value, Mapping):
        if isinstance(value.get("content"), list):
            value = {**value, "content": joined_text(value["content"])}
        return {
            _break_up(key, specials, mark): _break_up(item, specials, mark)
            for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [_break_up(item, specials, mark) for item in value]
    return value


def _unused_character(messages: Any) -> str:
    text = json.dumps(messages, ensure_ascii=False, default=str)
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelLoadError(f"{str(file)!r} is not a JSON object: {error}") from error


def _token_name(entry: Any) -> str | None:
    return entry.get("content") if isinstance(entry, dict) else entry


def _eos_token_ids(
    folder: Path, config: Mapping[str, Any], rust: tokenizers.Tokenizer
) -> list[int]:
    """generation_config.json's ids, else config.json's; and the tokenizer's own."""
    found: set[int] = set()
    for file in ("generation_config.json", "config.json"):
        ids = _read_json(folder / file).get("eos_token_id")
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
            break
    name = _token_name(config.get("eos_token"))
    token_id = rust.token_to_id(name) if name else None
    if token_id is not None:
        found.add(token_id)
    return sorted(found)


def _bos_token_id(
    folder: Path, config: Mapping[str, Any], rust: tokenizers.Tokenizer
) -> int | None:
    name = _token_name(config.get("bos_token"))
    token_id: int | None = rust.token_to_id(name) if name else None
    if token_id is None:
        token_id = _read_json(folder / "config.json").get("bos_token_id")
    return token_id
