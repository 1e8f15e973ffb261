"""What can be measured, by the words that a user writes. No torch before a model is opened."""

import os
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Struct

from backends.bundled import BUNDLED_MODELS
from backends.evaluation.candidate import Candidate
from backends.evaluation.errors import EvaluationError, UsageError
from backends.quantization.schemes import QuantizeAtLoad

API_KEY_ENV: Final = "HEADGATE_API_KEY"


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model to measure: in our engine, or behind an endpoint."""

    name: str
    model: str
    """bundled:NAME, a folder, a .gguf file or hf:owner/name; for an endpoint, what it calls the
    model."""
    kind: Literal["engine", "openai", "echo"] = "engine"
    base_url: str = ""
    api_key_env: str | None = None
    api_key_file: str | None = None
    quantization: QuantizeAtLoad | None = None


def parse_target(text: str) -> Target:
    """Read `[NAME=]MODEL`, `[NAME=]URL#MODEL`, or a `Target` as a JSON object.

    Raises:
        UsageError: it is none of them.
    """
    if text.startswith("{"):
        try:
            return msgspec.json.decode(text, type=Target)
        except msgspec.MsgspecError as error:
            raise UsageError(f"{text!r} is no target: {error}") from error
    name, equals, rest = text.partition("=")
    if not equals or any(mark in name for mark in "/:#."):
        name, rest = "", text
    if "://" in rest:
        return _endpoint(name, rest)
    model = f"bundled:{rest}" if rest in BUNDLED_MODELS else rest
    if not model:
        raise UsageError(f"{text!r} names no model; write NAME=MODEL")
    plain = rest.removeprefix("bundled:").removeprefix("hf:")
    return Target(name=name or Path(plain).resolve().name, model=model)


def _endpoint(name: str, url: str) -> Target:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or not parts.fragment:
        raise UsageError(
            f"{url!r} is no endpoint; write its base URL, usually ending in /v1, then # and the "
            "model's name, as in http://127.0.0.1:8080/v1#small"
        )
    path = parts.path.rstrip("/") or "/v1"
    return Target(
        name=name or parts.fragment,
        model=parts.fragment,
        kind="openai",
        base_url=urlunsplit(parts._replace(path=path, fragment="")),
        api_key_env=API_KEY_ENV if API_KEY_ENV in os.environ else None,
    )


def parse_targets(texts: list[str]) -> list[Target]:
    """Read all targets. Raises UsageError, also for two of one name."""
    targets = [parse_target(text) for text in texts]
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two models are called {name!r}; name them apart: OTHER=MODEL")
    return targets


def open_target(
    target: Target, *, threads: int | None = None, device: str = "auto", dtype: str = "auto"
) -> Candidate:
    """Load the model, or get ready to ask the endpoint.

    Raises:
        BackendError: the model cannot be loaded.
        EvaluationError: the endpoint's key is not there.
    """
    if target.kind == "engine":
        from backends.evaluation.engine_candidate import EngineCandidate

        return EngineCandidate(
            target.name,
            target.model,
            quantization=target.quantization,
            threads=threads,
            device=device,
            dtype=dtype,
        )
    from backends.evaluation.endpoint_candidate import EndpointCandidate

    if target.kind == "echo":
        from backends.echo import EchoBackend

        return EndpointCandidate(target.name, EchoBackend(), target.model, source="echo")
    from backends.client.openai_http import OpenAIHTTPBackend

    backend = OpenAIHTTPBackend(
        target.name, [target.base_url], model=target.model, api_key=_api_key(target)
    )
    source = f"{target.base_url}#{target.model}"
    return EndpointCandidate(target.name, backend, target.model, source=source)


def _api_key(target: Target) -> str | None:
    """The key out of a variable or a file; never out of the command line."""
    if target.api_key_env is not None:
        key = os.environ.get(target.api_key_env)
        if not key:
            raise EvaluationError(f"{target.name!r}: ${target.api_key_env} is not set")
        return key
    if target.api_key_file is not None:
        try:
            return Path(target.api_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise EvaluationError(f"{target.name!r}: its key cannot be read: {error}") from error
    return None
