"""Chat templates in the manner of models that call, and a tokenizer that has their markers."""

from backends.chat_template import ChatTemplate
from backends.tokenizer import Tokenizer
from tests.backends import tiny_tokenizers

SPECIALS = [
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<|python_start|>",
    "<|tool_call|>",
]
"""Markers of Mistral, Llama and Granite are special tokens; Hermes's are added, but plain text."""
END = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
HERMES = (
    "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}"
    "{{ ' - ' + t.function.description }}\n{% endfor %}"
    "Call with <tool_call>{...}</tool_call>.<|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% if m.role == 'tool' and m.name is not defined %}"
    "{{ raise_exception('results name their functions') }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|end|>{% endfor %}" + END
)
MISTRAL = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    "[TOOL_CALLS][{{ c.function | tojson }}]{% endfor %}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}<|end|>{% endfor %}" + END
)
LLAMA = (
    "{% if not tools is defined %}{% set tools = none %}{% endif %}"
    "{% if tools is not none %}<|system|>{{ tools | tojson }} Answer with "
    '{"name": function name, "parameters": dictionary of arguments}.<|end|>{% endif %}'
    "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}<|assistant|><|python_tag|>"
    '{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}{% endif %}<|end|>"
    "{% endfor %}" + END
)
QWEN_CODER = (
    "{% if tools %}<|system|>{{ tools | tojson }}\n<tool_call>\n<function=NAME>\n"
    "<parameter=NAME>\n{% endif %}{% for m in messages %}"
    "<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n<function={{ c.function.name }}>\n"
    "{% for key, value in c.function.arguments | items %}<parameter={{ key }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}"
    "</function>\n</tool_call>{% endfor %}<|end|>{% endfor %}" + END
)
MISTRAL_V11 = MISTRAL.replace(
    "[TOOL_CALLS][{{ c.function | tojson }}]",
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
)
GRANITE = (
    "{% if tools %}<|system|>{{ tools | tojson }} Respond with <|tool_call|> and a list.<|end|>"
    "{% endif %}{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>"
    "{% if m.tool_calls is defined %}<|tool_call|>["
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]"
    "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}" + END
)
PHI = GRANITE.replace("<|tool_call|> and a list", "functools[{...}]").replace(
    "<|tool_call|>[", "functools["
)
PYTHONIC = (
    "{% if tools %}<|system|>{{ tools | tojson }} Answer with [func_name1(params_name1=…)]"
    "<|end|>{% endif %}{% for m in messages %}"
    "<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% if m.tool_calls is defined %}[{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for key, value in c.function.arguments | items %}{{ key }}={{ value | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}){% endfor %}]{% endif %}<|end|>"
    "{% endfor %}" + END
)
XML = "{% if tools %}<function=NAME>{}</function>{% endif %}" + tiny_tokenizers.TEMPLATE
PLAIN = tiny_tokenizers.TEMPLATE
TEMPLATES = {
    "hermes": HERMES,
    "mistral": MISTRAL,
    "mistral_v11": MISTRAL_V11,
    "granite": GRANITE,
    "phi4_mini_json": PHI,
    "pythonic": PYTHONIC,
    "llama3_json": LLAMA,
    "qwen3_coder": QWEN_CODER,
}


def tokenizer(template: str | None) -> Tokenizer:
    """A byte-level one with that template."""
    rust = tiny_tokenizers.byte_level()
    rust.add_special_tokens(SPECIALS)
    rust.add_tokens(["<tool_call>", "</tool_call>"])
    compiled = None if template is None else ChatTemplate(template, tokens={"bos_token": "<|bos|>"})
    return Tokenizer(rust, eos_token_ids=[1, 5], chat_template=compiled)
