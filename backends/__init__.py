"""What answers a request: backends, their contract and this repository's own engine.

`from backends import LLM, SamplingParams` works without importing torch before it is needed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.contract import SamplingParams
    from backends.llm import LLM

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from backends.llm import LLM

        return LLM
    if name == "SamplingParams":
        from backends.contract import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'backends' has no attribute {name!r}")
