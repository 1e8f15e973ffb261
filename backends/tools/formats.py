"""How models write calls. The names of formats are those of vLLM's parsers.

===========  =================================================================================
qwen3_coder  `<tool_call>\\n<function=…>\\n<parameter=…>\\n…`, a tag for each argument: Qwen3-Coder
hermes       `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`: Hermes, Qwen 2.5 and 3
mistral      `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`
llama3_json  `{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3
===========  =================================================================================
"""

import json
import re
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

SHORT_ID: Final = 9
ToolCallParser = Literal["auto", "hermes", "llama3_json", "mistral", "qwen3_coder"]


class ToolFormat(Struct, frozen=True, kw_only=True):
    """One way to write calls: marker, opening, calls with `between` among them, closing."""

    name: str
    marker: str
    """Begins calls; a special token of its own in some vocabularies."""
    opening: str = ""
    between: str
    closing: str = ""
    begins: str = "{"
    """What a call begins with: a JSON object, or a tag."""
    arguments: str = "arguments"
    """What the object calls them."""
    bare: bool = False
    """Calls may stand without the marker where an answer begins with one."""
    several: bool = True
    """Whether models know to make several calls at once."""
    lead: re.Pattern[str]
    """What may stand between the marker and a call."""
    follow: re.Pattern[str]
    """What stands between a call and the next one; found anywhere behind the call."""
    signs: tuple[str, ...]
    """Any of these in a chat template says that its model writes this."""
    short_ids: bool = False
    """Ids of `SHORT_ID` letters or digits, which is all that the templates take."""

    def head(self, name: str) -> str:
        """What a call is up to its arguments."""
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": '

    @property
    def is_json(self) -> bool:
        """Whether a call is one JSON object."""
        return self.begins == "{"

    def spell(self, calls: list[tuple[str, str]]) -> str:
        """Calls of (name, arguments in JSON) as a model writes them."""
        told = [self._call(name, arguments) for name, arguments in calls]
        return f"{self.marker}{self.opening}{self.between.join(told)}{self.closing}"

    def _call(self, name: str, arguments: str) -> str:
        if self.is_json:
            return f"{self.head(name)}{arguments}}}"
        parts = [f"<function={name}>\n"]
        for key, value in json.loads(arguments).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"<parameter={key}>\n{text}\n</parameter>\n")
        return "".join(parts) + "</function>"


HERMES: Final = ToolFormat(
    name="hermes",
    marker="<tool_call>",
    opening="\n",
    between="\n</tool_call>\n<tool_call>\n",
    closing="\n</tool_call>",
    lead=re.compile(r"\s*"),
    follow=re.compile(r"<tool_call>"),
    signs=("<tool_call>",),
)
QWEN_CODER: Final = replace(HERMES, name="qwen3_coder", begins="<function=", signs=("<parameter=",))
MISTRAL: Final = ToolFormat(
    name="mistral",
    marker="[TOOL_CALLS]",
    opening="[",
    between=", ",
    closing="]",
    lead=re.compile(r"\s*\[?\s*"),
    follow=re.compile(r"\A\s*,"),
    signs=("[TOOL_CALLS]",),
    short_ids=True,
)
LLAMA: Final = ToolFormat(
    name="llama3_json",
    marker="<|python_tag|>",
    between="; ",
    arguments="parameters",
    bare=True,
    several=False,
    lead=re.compile(r"\s*"),
    follow=re.compile(r"\A\s*;"),
    signs=("<|python_tag|>", '{"name": function name, "parameters": '),
)
FORMATS: Final = {found.name: found for found in (QWEN_CODER, HERMES, MISTRAL, LLAMA)}

_OTHERS: Final = ("<function=", "[ARGS]")
"""In templates of models that write calls in ways we cannot read."""


def format_of(template: str) -> ToolFormat | None:
    """What the model of a chat template writes; None: nothing we know."""
    for found in FORMATS.values():
        if any(sign in template for sign in found.signs):
            return None if found.is_json and any(o in template for o in _OTHERS) else found
    return None
