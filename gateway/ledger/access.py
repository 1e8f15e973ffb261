"""What keys may do: roles of those with the scope `admin`, restrictions of all others."""

from collections.abc import Mapping
from typing import Literal, get_args

from msgspec import Struct

Role = Literal["owner", "operator", "auditor", "team"]
ROLES: tuple[Role, ...] = get_args(Role)
"""owner: everything. operator: budgets, caches, policies. auditor: reads all, changes nothing.
team: its own team's keys, users and budgets, and nothing of others."""

Permission = Literal[
    "keys:read",
    "keys:write",
    "teams:read",
    "teams:write",
    "budgets:read",
    "budgets:write",
    "operations:read",
    "operations:write",
    "audit:read",
]
_ALL: frozenset[Permission] = frozenset(get_args(Permission))
_READ: frozenset[Permission] = frozenset(p for p in _ALL if p.endswith(":read"))
_OF_TEAM: frozenset[Permission] = frozenset(
    ("keys:read", "keys:write", "teams:read", "budgets:read", "budgets:write")
)
PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    "owner": _ALL,
    "operator": _READ | {"budgets:write", "operations:write"},
    "auditor": _READ,
    "team": _OF_TEAM,
}


class Only(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key is restricted to; None: not restricted."""

    endpoints: tuple[str, ...] | None = None
    """Paths without /v1/: chat/completions, embeddings, …"""
    models: tuple[str, ...] | None = None
    """Backends, tiers and aliases."""
    policies: tuple[str, ...] | None = None
    """That it may ask for; the configured one always decides for `auto`."""
    networks: tuple[str, ...] | None = None
    """Addresses it may be used from, such as 10.0.0.0/8."""


EVERYTHING = Only()
