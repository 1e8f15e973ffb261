"""Policies by name, read from files and read again when those change.

`get()` looks at the file (one or two stat calls, a few microseconds), so a valid edit takes effect
on the next request. An invalid edit, one that names tiers or backends that do not exist, or a file
that has gone is logged once and reported by `problems()`; the version that worked stays.
"""

import hashlib
import os
import re
import time
from collections.abc import Collection
from pathlib import Path

import structlog
from msgspec import Struct, structs

import policies
from gateway.errors import SettingsError
from gateway.settings import RoutingSettings
from policies.checker import check, parse
from policies.evaluator import CompiledPolicy
from policies.model import Policy
from policies.problems import PolicyError, Problem

log = structlog.get_logger(__name__)

SHIPPED = Path(policies.__file__).parent
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_RACY_NS = 100_000_000
"""A file changed less than this before it was read may change again within one clock tick."""

_Signature = tuple[int, int, int, int]


class LoadedPolicy(Struct, frozen=True, kw_only=True):
    """One version of a policy."""

    name: str
    policy: Policy
    compiled: CompiledPolicy
    sha256: str
    """Of the file's bytes."""
    text: str
    path: str

    @property
    def ref(self) -> str:
        """NAME@sha8, as in x-headgate-policy."""
        return f"{self.name}@{self.sha256[:8]}"


def loaded_from(name: str, text: str, sha256: str, path: str) -> LoadedPolicy:
    """A version out of its text. Raises PolicyError."""
    policy = parse(text, path)
    return LoadedPolicy(
        name=name,
        policy=policy,
        compiled=CompiledPolicy(policy),
        sha256=sha256,
        text=text,
        path=path,
    )


class UnknownPolicy(LookupError):
    """No folder has a policy of this name."""


class _Entry(Struct):
    """What is held of one name; `signature` None makes the next get() read again."""

    loaded: LoadedPolicy | None = None
    path: str = ""
    signature: _Signature | None = None
    problem: str | None = None


def check_name(name: str) -> None:
    """Raises UnknownPolicy for what can be no policy's name."""
    if not _NAME.match(name):
        raise UnknownPolicy(f"{name!r} is no name of a policy")


class PolicyBook:
    """Policies out of `policy_dirs`, then the shipped ones; the first folder that has a name wins.

    Args:
        targets: tiers and backends that exist. A version that names others is reported, and where
            there is an earlier one not taken. None: names are not looked at.

    Raises:
        SettingsError: the configured policy does not exist or is not valid.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        targets: Collection[str] | None = None,
        *,
        shipped: Path = SHIPPED,
    ) -> None:
        self._targets = targets
        self._dirs = [*settings.policy_dirs, str(shipped)]
        self._entries: dict[str, _Entry] = {}
        self.default = settings.policy
        try:
            self.get(self.default)
        except UnknownPolicy as error:
            raise SettingsError(f"routing.policy: {error}") from None
        except PolicyError as error:
            raise SettingsError(f"routing.policy: {error}") from None

    def get(self, name: str | None = None) -> LoadedPolicy:
        """The policy's newest valid version; None: the configured one.

        Raises:
            UnknownPolicy: no such policy.
            PolicyError: it has never been valid.
        """
        name = name or self.default
        entry = self._entries.get(name)
        if entry is None:
            check_name(name)
            entry = _Entry()
        self._refresh(name, entry)
        if entry.loaded is None:
            raise UnknownPolicy(
                f"no policy {name!r} in {', '.join(self._dirs)}; there are: "
                + ", ".join(self.names())
            )
        self._entries[name] = entry
        return entry.loaded

    def names(self) -> list[str]:
        """All policies that can be asked for, shipped ones included."""
        found: set[str] = set()
        for folder in self._dirs:
            found.update(
                path.stem for path in Path(folder).glob("*.toml") if _NAME.match(path.stem)
            )
        return sorted(found)

    def problems(self) -> list[str]:
        """What is wrong with policies in use, for /health; empty when all is well."""
        for name, entry in self._entries.items():
            self._refresh(name, entry)
        return [entry.problem for entry in self._entries.values() if entry.problem]

    def _refresh(self, name: str, entry: _Entry) -> None:
        path, signature = self._look(name)
        if signature is None:
            if entry.loaded is not None:
                self._complain(entry, f"{entry.path}: the file is gone; the last version stays")
                entry.signature = None
            return
        if signature == entry.signature and path == entry.path:
            return
        if entry.loaded is not None and path == str(Path(self._dirs[-1]) / f"{name}.toml"):
            own = entry.loaded.path
            if own != path and not os.path.lexists(own):
                # an editor's moment between remove and rename must not switch to the shipped one
                self._complain(
                    entry, f"{own}: the file is gone; the last version stays until a restart"
                )
                return
        self._read(name, entry, path, signature)

    def _look(self, name: str) -> tuple[str, _Signature | None]:
        """The first file of that name, and what tells its versions apart (links followed)."""
        for folder in self._dirs:
            path = f"{folder}/{name}.toml"
            try:
                stat = os.stat(path)  # noqa: PTH116 (a Path per request would double the cost)
            except OSError:
                continue
            return path, (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return "", None

    def _read(self, name: str, entry: _Entry, path: str, signature: _Signature) -> None:
        racy = time.time_ns() - signature[2] < _RACY_NS
        first = entry.loaded is None
        try:
            data = Path(path).read_bytes()
            text = data.decode("utf-8")
            sha256 = hashlib.sha256(data).hexdigest()
            same = entry.loaded is not None and entry.loaded.sha256 == sha256
            lost = self._lost(text)
            if lost and not first and not same:
                raise PolicyError(path, lost)
            if entry.loaded is None or not same:
                loaded = loaded_from(name, text, sha256, path)
            else:
                loaded = structs.replace(entry.loaded, path=path)
        except (PolicyError, UnicodeDecodeError, OSError) as error:
            if first:
                if isinstance(error, PolicyError):
                    raise
                raise UnknownPolicy(f"{path}: {error}") from None
            self._complain(entry, f"{error}; the last valid version stays")
            entry.path, entry.signature = path, None if racy else signature
            return
        if not same or (entry.loaded is not None and entry.loaded.path != path):
            entry.loaded = loaded  # the same object as long as nothing changed
        if not same:
            log.info("policy_loaded", policy=loaded.ref, path=path)
        entry.path, entry.signature = path, None if racy else signature
        if lost:
            self._complain(entry, str(PolicyError(path, lost)))
        else:
            entry.problem = None

    def _lost(self, text: str) -> list[Problem]:
        """What it asks that does not exist."""
        if self._targets is None:
            return []
        return [problem for problem in check(text, self._targets) if problem.level == "error"]

    def _complain(self, entry: _Entry, problem: str) -> None:
        if entry.problem != problem:
            entry.problem = problem
            log.warning("policy_reload_failed", problem=problem)
