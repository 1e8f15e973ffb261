"""The beginnings of prompts as digests, to know where they were seen before.

A prompt is cut into blocks of bytes; a block's digest covers everything up to its end, so two
prompts that share k digests share their first k blocks. No tokenizer is asked: what matters is
which server has seen the same beginning, not where its tokens end.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

BLOCK_BYTES = 256
BLOCK_TOKENS = BLOCK_BYTES // 4
"""About."""
MOST_BLOCKS = 1024
_encode = msgspec.json.Encoder().encode


def prefix_blocks(body: Mapping[str, Any]) -> tuple[int, ...]:
    """Digests of the beginnings of an OpenAI body's prompt, the shortest first."""
    data = _prompt_bytes(body)[: MOST_BLOCKS * BLOCK_BYTES]
    view, digest, found = memoryview(data), 0, []
    for start in range(0, len(data) - BLOCK_BYTES + 1, BLOCK_BYTES):
        digest = zlib.crc32(view[start : start + BLOCK_BYTES], digest)
        found.append(digest)
    return tuple(found)


def _prompt_bytes(body: Mapping[str, Any]) -> bytes:
    messages = body.get("messages")
    if messages is None:
        prompt = body.get("prompt", body.get("input"))
        return prompt.encode("utf-8", "replace") if isinstance(prompt, str) else _encode(prompt)
    parts = [_encode(body["tools"])] if body.get("tools") else []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            parts.append(f"{message.get('role')}\0{content}\0".encode("utf-8", "replace"))
        else:
            parts.append(_encode(message))
    return b"".join(parts)
