"""A model's chat template: Jinja in a sandbox, as Hugging Face renders it."""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.errors import InvalidRequestError, ModelLoadError

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class ChatTemplate:
    """A compiled template and the special tokens it may name."""

    def __init__(
        self, source: str, *, tools_source: str | None = None, tokens: Mapping[str, str]
    ) -> None:
        """`tools_source` is used instead where tools are given."""
        self.source = source
        self.tools_source = tools_source or source
        self._tokens = dict(tokens)
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._tools = environment.from_string(self.tools_source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelLoadError(
                f"chat template does not parse: {error.message} (line {error.lineno})"
            ) from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads, with or without tools."""
        trees = map(_environment().parse, {self.source, self.tools_source})
        return frozenset().union(*map(meta.find_undeclared_variables, trees))

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> "ChatTemplate | None":
        """From chat_template.jinja, chat_template.json or tokenizer_config.json, in this order."""
        source: Any = config.get("chat_template")
        if (folder / "chat_template.json").is_file():
            source = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
        if (folder / "chat_template.jinja").is_file():
            source = (folder / "chat_template.jinja").read_text("utf-8")
        if not source:
            return None
        tools_source = None
        if not isinstance(source, str):
            named = {entry["name"]: entry["template"] for entry in source}
            tools_source = named.get("tool_use")
            source = named.get("default") or next(iter(named.values()))
        tokens = {
            name: entry["content"] if isinstance(entry, dict) else entry
            for name, entry in config.items()
            if name in _TOKEN_NAMES and entry
        }
        return cls(source, tools_source=tools_source, tokens=tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The prompt text of a chat. Text parts of a message are joined first.

        Raises:
            InvalidRequestError: the template refuses these messages, or fails on them.
        """
        template = self._tools if tools else self._template
        plain = [
            {**message, "content": joined_text(message["content"])}
            if isinstance(message.get("content"), list)
            else message
            for message in messages
        ]
        try:
            return template.render(
                messages=plain,
                tools=tools or None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
                **extra,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error


def joined_text(parts: Sequence[Any]) -> str:
    """The text of a message's content parts."""
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


class _GenerationTag(Extension):
    """`{% generation %}` marks the answer for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which a prompt must not be.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)
