"""What answers a request: backends, their contract and this repository's own engine.

`from backends import LLM, SamplingParams` works without importing torch before it is needed.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.contract import SamplingParams, StructuredOutputsParams
    from backends.llm import LLM

__all__ = ["LLM", "SamplingParams", "StructuredOutputsParams"]

if "torch" not in sys.modules:
    # OpenMP reads this once, when torch loads. By default its threads spin while they wait, and on
    # a machine whose cores are shared (as ours are, between gateway and backends) a forward pass
    # then takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from backends.llm import LLM

        return LLM
    if name in ("SamplingParams", "StructuredOutputsParams"):
        from backends import contract

        return getattr(contract, name)
    raise AttributeError(f"module 'backends' has no attribute {name!r}")
