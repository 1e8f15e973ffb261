"""Who is calling, and may they: one key in, one `Caller` out."""

import hmac
from collections.abc import Mapping

from gateway.errors import Forbidden, InvalidApiKey
from gateway.ledger.keys import ANONYMOUS, Caller, KeyBook, Scope, admin_digest, digest
from gateway.settings import Settings


class Gate:
    """Turns request headers into a caller.

    With auth = "keys" a valid key is required. With auth = "open" a key of ours is honoured, and
    whatever else stands in the header is ignored: SDKs insist on sending something.
    """

    def __init__(self, settings: Settings, keys: KeyBook) -> None:
        self._required = settings.server.auth == "keys"
        self._keys = keys
        self._admin = admin_digest(settings)

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """The caller.

        Raises:
            InvalidApiKey: a key is required, and there is none or nobody knows it.
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
            return caller
        if self._required:
            raise InvalidApiKey(
                f"The API key {secret[:6]!r}… is unknown, expired or revoked; create one with "
                "`headgate keys create`."
            )
        return ANONYMOUS

    def _is_ours(self, secret: str) -> bool:
        """Whether the string can be a key of ours; other keys never reach the database."""
        if secret.startswith("hg-"):
            return True
        return self._admin is not None and hmac.compare_digest(digest(secret), self._admin)


def require(caller: Caller, scope: Scope) -> None:
    """Raises Forbidden if the caller's key lacks the scope."""
    if not caller.may(scope):
        raise Forbidden(f"This key may not do that: it needs the scope {scope!r}.")


def _secret(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer …`, `x-api-key` or `api-key`; empty if there is none."""
    value = headers.get("authorization", "")
    scheme, _, secret = value.partition(" ")
    if secret and scheme.lower() == "bearer":
        return secret.strip()
    return value.strip() or headers.get("x-api-key", "") or headers.get("api-key", "")
