"""What a server's own words about itself mean: our /health, or a foreign server's model list."""

from collections.abc import Mapping
from typing import Any

from backends.client.server_metrics import ServerMetrics
from backends.contract import BackendHealth


def own_health(health: Mapping[str, Any]) -> BackendHealth:
    """Our own servers' /health."""
    accepts = health.get("accepts")
    context, kv_usage = health.get("context_tokens"), health.get("kv_cache_usage_ratio")
    return BackendHealth(
        ready=bool(health.get("ready", True)),
        running=int(health.get("running", 0)),
        waiting=int(health.get("waiting", 0)),
        capacity=int(health.get("capacity", 0)),
        model_revision=str(health["model_revision"]),
        context_tokens=context if isinstance(context, int) else None,
        kv_usage_ratio=float(kv_usage) if isinstance(kv_usage, int | float) else None,
        detail=str(health.get("detail", "")),
        accepts=tuple(accepts) if isinstance(accepts, list) else None,
    )


def foreign_health(
    models: Mapping[str, Any],
    model: str,
    *,
    running: int,
    capacity: int,
    metrics: ServerMetrics | None = None,
) -> BackendHealth:
    """A server that answers /v1/models (or says that it has no such path) is ready.

    vLLM lists `max_model_len` and `root`; others at least the id.

    Args:
        running: what we know of; `metrics` tell what others have there, too.
    """
    load = metrics or ServerMetrics()
    cards = [card for card in models.get("data") or [] if isinstance(card, dict)]
    card: dict[str, Any] = next((card for card in cards if card.get("id") == model), {})
    context = card.get("max_model_len")
    unknown = bool(cards) and bool(model) and not card
    return BackendHealth(
        ready=True,
        running=max(running, round(load.running or 0)),
        waiting=round(load.waiting or 0),
        capacity=capacity,
        kv_usage_ratio=load.kv_usage,
        model_revision=str(card.get("root") or model),
        context_tokens=context if isinstance(context, int) else None,
        detail=f"model {model!r} is not in its list" if unknown else "",
    )


def why_unready(health: Mapping[str, Any], status: int) -> str:
    """Why a server is unready, in its own words where it has some."""
    return str(health.get("detail") or health.get("status") or f"/health answered {status}")
