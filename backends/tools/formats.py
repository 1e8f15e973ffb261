"""How models write calls. The names of formats are those of vLLM's parsers.

==============  ==============================================================================
qwen3_coder     `<tool_call>\\n<function=…>\\n<parameter=…>\\n…`, a tag for each argument:
                Qwen3-Coder
hermes          `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`: Hermes, Qwen 2.5
                and 3, Granite 4
mistral_v11     `[TOOL_CALLS]name[ARGS]{…}`, once for each: Mistral Small 3.2, Devstral,
                Ministral 3
mistral         `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`; to vLLM both of the two
granite         `<|tool_call|>[{"name": …, "arguments": {…}}, …]`: Granite 3
phi4_mini_json  `functools[{"name": …, "arguments": {…}}, …]`: Phi-4-mini by vLLM's template
pythonic        `[f(a=1, b="x"), g()]`, perhaps behind `<|python_start|>`: Llama 3.2 and 4
llama3_json     `{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3
==============  ==============================================================================
"""

import json
import re
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

SHORT_ID: Final = 9
MOST_CALLS: Final = 32
"""Of one answer: some models would make one after the other until their tokens end."""
ToolCallParser = Literal[
    "auto",
    "granite",
    "hermes",
    "llama3_json",
    "mistral",
    "mistral_v11",
    "phi4_mini_json",
    "pythonic",
    "qwen3_coder",
]


class ToolFormat(Struct, frozen=True, kw_only=True):
    """One way to write calls: marker, opening, calls with `between` among them, closing."""

    name: str
    marker: str
    """Begins calls; a special token of its own in some vocabularies."""
    opening: str = ""
    between: str
    closing: str = ""
    shape: Literal["object", "named", "tags", "python"] = "object"
    """Of a call: a JSON object, a name and an object, tags, or Python."""
    begins: str = "{"
    """What every call begins with."""
    arguments: str = "arguments"
    """What the object calls them."""
    bare: str = ""
    """What calls without the marker begin with, where answers may begin with such; "": none may."""
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

    def around(self, name: str) -> tuple[str, str]:
        """What stands before and behind a call's arguments, where these are JSON."""
        if self.shape == "named":
            return f"{name}[ARGS]", ""
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments}": ', "}"

    def spell(self, calls: list[tuple[str, str]]) -> str:
        """Calls of (name, arguments in JSON) as a model writes them."""
        told = [self._call(name, arguments) for name, arguments in calls]
        return f"{self.marker}{self.opening}{self.between.join(told)}{self.closing}"

    def _call(self, name: str, arguments: str) -> str:
        if self.shape in ("object", "named"):
            before, behind = self.around(name)
            return f"{before}{arguments}{behind}"
        if self.shape == "python":
            values = json.loads(arguments).items()
            return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in values)})"
        parts = [f"<function={name}>\n"]
        for key, value in json.loads(arguments).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"<parameter={key}>\n{text}\n</parameter>\n")
        return "".join(parts) + "</function>"


def _literal(value: Any) -> str:
    """As Python writes it, with strings in JSON's quotes."""
    if value is None or isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


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
QWEN_CODER: Final = replace(
    HERMES, name="qwen3_coder", shape="tags", begins="<function=", signs=("<parameter=",)
)
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
MISTRAL_V11: Final = replace(
    MISTRAL,
    name="mistral_v11",
    shape="named",
    begins="",
    opening="",
    between="[TOOL_CALLS]",
    closing="",
    lead=re.compile(r"\s*"),
    follow=re.compile(r"\[TOOL_CALLS\]"),
    signs=("[ARGS]",),
)
GRANITE: Final = replace(
    MISTRAL,
    name="granite",
    marker="<|tool_call|>",
    signs=("<|tool_call|>",),
    short_ids=False,
)
PHI: Final = replace(GRANITE, name="phi4_mini_json", marker="functools", signs=("functools[",))
PYTHONIC: Final = ToolFormat(
    name="pythonic",
    marker="<|python_start|>",
    shape="python",
    begins="",
    opening="[",
    between=", ",
    closing="]",
    bare="[",
    lead=re.compile(r"\s*\[?\s*"),
    follow=re.compile(r"\A\s*,"),
    signs=("[func_name1(", "<|python_start|>["),
)
LLAMA: Final = ToolFormat(
    name="llama3_json",
    marker="<|python_tag|>",
    between="; ",
    arguments="parameters",
    bare="{",
    several=False,
    lead=re.compile(r"\s*"),
    follow=re.compile(r"\A\s*;"),
    signs=("<|python_tag|>", '{"name": function name, "parameters": '),
)
MARKS: Final = ("[ARGS]", "[CALL_ID]")
"""Within calls; special tokens, too, in vocabularies of those who write them."""
FORMATS: Final = {
    found.name: found
    for found in (QWEN_CODER, HERMES, MISTRAL_V11, MISTRAL, GRANITE, PHI, PYTHONIC, LLAMA)
}

_OTHER: Final = "<function="
"""In templates of models that write calls in ways we cannot read."""


def format_of(template: str, parser: ToolCallParser = "auto") -> ToolFormat | None:
    """What the model of a chat template writes; None: nothing we know.

    Args:
        parser: what it is said to write; the template still says which of Mistral's two it is.
    """
    if parser == "mistral" and MISTRAL_V11.signs[0] in template:
        return MISTRAL_V11
    if parser != "auto":
        return FORMATS[parser]
    for found in FORMATS.values():
        if any(sign in template for sign in found.signs):
            return None if found.shape == "object" and _OTHER in template else found
    return None
