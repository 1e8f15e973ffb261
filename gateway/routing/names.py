"""What models' names stand for, and which of them a key may use."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Forbidden, ModelNotFound
from gateway.ledger.access import EVERYTHING, Only
from gateway.routing.health import ONLY_VECTORS, BackendRegistry
from gateway.routing.policy_book import PolicyBook
from policies.model import BackendCard

_MAX_ALIASES = 8


class Resolved(Struct, frozen=True, kw_only=True):
    """What a requested model stands for."""

    kind: str
    """auto, policy, tier or backend."""
    policy: str | None = None
    """None: the configured policy."""
    allowed: frozenset[str] | None = None
    """Backends it names; None: all."""


class Names:
    """Aliases, tiers, backends and policies, by the words that clients write as `model`."""

    def __init__(
        self, aliases: Mapping[str, str], registry: BackendRegistry, book: PolicyBook
    ) -> None:
        self._aliases = aliases
        self._registry = registry
        self._book = book

    def resolve(self, model: str) -> Resolved:
        """What a model's name stands for. Raises ModelNotFound."""
        name = model
        for _ in range(_MAX_ALIASES):
            if name not in self._aliases:
                break
            name = self._aliases[name]
        if name == "auto":
            return Resolved(kind="auto")
        if name.startswith("policy:"):
            return Resolved(kind="policy", policy=name[7:])
        cards = self._registry.cards()
        plain = name.removeprefix("backend:")
        if plain == name:
            tier = frozenset(card.name for card in cards.values() if card.tier == name)
            if tier:
                return Resolved(kind="tier", allowed=tier)
        if plain in cards:
            return Resolved(kind="backend", allowed=frozenset({plain}))
        known = ", ".join(sorted({"auto", *self._aliases, *cards, *_tiers(cards)}))
        raise ModelNotFound(
            f"The model {model!r} does not exist here; there are: {known}.", param="model"
        )

    def only_embeds(self, model: str) -> bool:
        """Whether a name stands for backends that make vectors only. Raises ModelNotFound."""
        cards, names = self._registry.cards(), self.resolve(model).allowed
        return bool(names) and all(cards[name].endpoints == ONLY_VECTORS for name in names or ())

    def restricted(
        self, resolved: Resolved, model: str, header: str | None, only: Only
    ) -> Resolved:
        """What is left of a model's meaning for a restricted key. Raises Forbidden."""
        policy = header or resolved.policy
        if policy is not None and only.policies is not None and policy not in only.policies:
            raise Forbidden(
                f"This key may not ask for the policy {policy!r}; "
                f"it may for: {', '.join(only.policies)}."
            )
        if only.models is None or model in only.models:
            return resolved
        allowed = self._backends_of(only.models)
        if resolved.allowed is not None:
            allowed &= resolved.allowed
        if not allowed:
            raise Forbidden(
                f"This key may not use the model {model!r}; it may use: {', '.join(only.models)}.",
                param="model",
            )
        return replace(resolved, allowed=allowed)

    def entries(self, created: int = 0, only: Only = EVERYTHING) -> list[dict[str, Any]]:
        """Entries of /v1/models that a key may use: auto, aliases, tiers, backends, policies."""
        cards = self._registry.cards()
        entries = {"auto": {"kind": "auto"}}
        entries |= {alias: {"kind": "alias", "model": to} for alias, to in self._aliases.items()}
        entries |= {tier: {"kind": "tier", "tier": tier} for tier in _tiers(cards)}
        for card in cards.values():
            entries.setdefault(card.name, {"kind": "backend"}).update(
                tier=card.tier, model=card.model
            )
        entries |= {f"policy:{name}": {"kind": "policy"} for name in self._book.names()}
        return [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "headgate",
                "headgate": about,
            }
            for name, about in entries.items()
            if only is EVERYTHING or self._may_ask_for(name, only)
        ]

    def entry(self, name: str, created: int = 0, only: Only = EVERYTHING) -> dict[str, Any]:
        """One entry of /v1/models. Raises ModelNotFound, Forbidden."""
        for entry in self.entries(created, only):
            if entry["id"] == name:
                return entry
        resolved = self.restricted(self.resolve(name), name, None, only)
        if resolved.policy is not None:
            raise ModelNotFound(f"There is no policy {resolved.policy!r}.", param="model")
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "headgate",
            "headgate": {"kind": resolved.kind},
        }

    def _may_ask_for(self, name: str, only: Only) -> bool:
        try:
            self.restricted(self.resolve(name), name, None, only)
        except (Forbidden, ModelNotFound):
            return False
        return True

    def _backends_of(self, models: Sequence[str]) -> frozenset[str]:
        """All backends that the models name."""
        found: frozenset[str] = frozenset()
        for name in models:
            with contextlib.suppress(ModelNotFound):  # it may come back with the next restart
                found |= self.resolve(name).allowed or frozenset()
        return found


def _tiers(cards: Mapping[str, BackendCard]) -> list[str]:
    return list(dict.fromkeys(card.tier for card in cards.values()))
