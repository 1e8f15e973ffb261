"""Who is calling, and may they: one key in, one `Caller` out."""

import hmac
import ipaddress
from collections.abc import Mapping

from gateway.errors import Forbidden, InvalidApiKey
from gateway.ledger.keys import ANONYMOUS, Caller, KeyBook, Scope, admin_digest, digest
from gateway.settings import Settings

Client = tuple[str, int]


class Gate:
    """Turns request headers into a caller.

    With auth = "keys" a valid key is required. With auth = "open" a key of ours is honoured, and
    whatever else stands in the header is ignored: SDKs insist on sending something.
    """

    def __init__(self, settings: Settings, keys: KeyBook) -> None:
        self._required = settings.server.auth == "keys"
        self._keys = keys
        self._admin = admin_digest(settings)
        self._proxies = [
            ipaddress.ip_network(text, strict=False) for text in settings.server.trusted_proxies
        ]

    async def caller(self, headers: Mapping[str, str], client: Client | None = None) -> Caller:
        """The caller.

        Args:
            client: (address, port) at the other end of the connection.

        Raises:
            InvalidApiKey: a key is required, and there is none or nobody knows it.
            Forbidden: the key may not be used from where it comes from.
            Unavailable: keys cannot be looked up now.
        """
        secret = _secret(headers)
        if not secret:
            if self._required:
                raise InvalidApiKey(
                    "No API key was sent; send one as `Authorization: Bearer hg-…`."
                )
            return ANONYMOUS
        if not self._required and not self._is_ours(secret):
            return ANONYMOUS
        caller = await self._keys.authenticate(secret)
        if caller is not None:
            if caller.only.networks is not None:
                self._check_network(caller, headers, client)
            return caller
        if self._required:
            raise InvalidApiKey(
                f"The API key {secret[:6]!r}… is unknown, expired or revoked; create one with "
                "`headgate keys create`."
            )
        return ANONYMOUS

    def address(self, headers: Mapping[str, str], client: Client | None) -> str:
        """Where a request comes from: the connection's other end, or whom trusted proxies name."""
        address = str(client[0]) if client else ""
        if not self._proxies or not self._trusts(address):
            return address
        for hop in reversed(headers.get("x-forwarded-for", "").split(",")):
            if not hop.strip():
                break
            address = hop.strip()
            if not self._trusts(address):
                break
        return address

    def _trusts(self, address: str) -> bool:
        try:
            at = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(at in network for network in self._proxies)

    def _check_network(
        self, caller: Caller, headers: Mapping[str, str], client: Client | None
    ) -> None:
        address = self.address(headers, client)
        if not caller.may_come_from(address):
            raise Forbidden(f"This key may not be used from {address or 'an unknown address'}.")

    def _is_ours(self, secret: str) -> bool:
        """Whether the string can be a key of ours; other keys never reach the database."""
        if secret.startswith("hg-"):
            return True
        return self._admin is not None and hmac.compare_digest(digest(secret), self._admin)


def require(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden if the caller's key lacks the scope."""
    if not caller.may(scope):
        raise Forbidden(f"This key may not do that: it needs the scope {scope!r}.")


def require_endpoint(caller: Caller, endpoint: str) -> None:
    """Raises Forbidden if the caller's key is restricted to other endpoints."""
    if not caller.may_ask(endpoint):
        raise Forbidden(f"This key may not use {endpoint!r}.")


def _secret(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer …`, `x-api-key` or `api-key`; empty if there is none."""
    value = headers.get("authorization", "")
    scheme, _, secret = value.partition(" ")
    if secret and scheme.lower() == "bearer":
        return secret.strip()
    return value.strip() or headers.get("x-api-key", "") or headers.get("api-key", "")
