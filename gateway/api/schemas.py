"""What a client may say in headers, in `metadata` and in a body beyond its types, checked.

The OpenAI bodies themselves are structs in `backends/wire.py`.
"""

import contextlib
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Literal, cast

from msgspec import Struct, field

from backends.wire import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from gateway.errors import InvalidRequest

CacheHeader = Literal["off", "exact", "semantic", "refresh"]
WireRequest = ChatCompletionRequest | CompletionRequest | EmbeddingRequest

MAX_TAGS = 16
MAX_TAG_BYTES = 64
_RESERVED_TAGS = frozenset({"team", "key", "user"})
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
_IDS = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(-.*)?")
"""W3C Trace Context: later versions may say more."""
_TRACESTATE = re.compile(r"[\x20-\x7e\t]{1,2048}")
"""Its members are whose they are; what is no header's value, or very long, is left out."""
_NAME = re.compile(r"^[\w.@-]{1,128}$")


class Options(Struct, frozen=True, kw_only=True):
    """The request headers that Headgate gives a meaning to."""

    cache: CacheHeader | None = None
    policy: str | None = None
    max_cost_nano_usd: int | None = None
    deadline_s: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    request_id: str | None = None
    """The client's own id of the request."""
    traceparent: str | None = None
    tracestate: str | None = None
    """What tracing systems add; None without a traceparent."""
    accept_restart: bool = False
    """The client understands a stream that begins again."""

    def passed_on(self) -> dict[str, str]:
        """Headers that backends get as they came."""
        if self.traceparent is None:
            return {}
        if self.tracestate is None:
            return {"traceparent": self.traceparent}
        return {"traceparent": self.traceparent, "tracestate": self.tracestate}


_NONE = Options()
_READ = frozenset(
    {
        "x-headgate-cache",
        "x-headgate-policy",
        "x-headgate-max-cost-usd",
        "x-headgate-deadline-ms",
        "x-headgate-tags",
        "x-headgate-accept-restart",
        "x-request-id",
        "traceparent",
    }
)


def read_options(headers: Mapping[str, str]) -> Options:
    """Check and decode the request headers.

    Raises:
        InvalidRequest: a value that is not allowed; `param` names the header.
    """
    if _READ.isdisjoint(headers):
        return _NONE
    return Options(
        cache=_cache(headers.get("x-headgate-cache")),
        policy=_policy(headers.get("x-headgate-policy")),
        max_cost_nano_usd=_max_cost(headers.get("x-headgate-max-cost-usd")),
        deadline_s=_deadline(headers.get("x-headgate-deadline-ms")),
        tags=_tags(headers.get("x-headgate-tags")),
        request_id=_request_id(headers.get("x-request-id")),
        traceparent=(traceparent := _traceparent(headers.get("traceparent"))),
        tracestate=_tracestate(headers.get("tracestate")) if traceparent else None,
        accept_restart=_flag(headers, "x-headgate-accept-restart"),
    )


def _refuse(header: str, value: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{header} is {value[:128]!r}; allowed: {allowed}.", param=header)


def _cache(value: str | None) -> CacheHeader | None:
    if value is None or value in ("off", "exact", "semantic", "refresh"):
        return cast("CacheHeader | None", value)
    raise _refuse("x-headgate-cache", value, "off, exact, semantic, refresh")


def _policy(value: str | None) -> str | None:
    if value is None or _NAME.match(value):
        return value
    raise _refuse("x-headgate-policy", value, "the name of a policy")


def _max_cost(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        usd = Decimal(value)
    except InvalidOperation:
        usd = Decimal(-1)
    if not usd.is_finite() or not 0 <= usd <= 1_000_000:
        raise _refuse("x-headgate-max-cost-usd", value, "dollars, 0 to 1000000")
    return int(usd.scaleb(9))


def _deadline(value: str | None) -> float | None:
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value[:12]) <= 86_400_000:
        raise _refuse("x-headgate-deadline-ms", value, "milliseconds, 1 to 86400000")
    return int(value) / 1000


def _flag(headers: Mapping[str, str], name: str) -> bool:
    value = headers.get(name, "0")
    if value not in ("0", "1"):
        raise _refuse(name, value, "0, 1")
    return value == "1"


def _request_id(value: str | None) -> str | None:
    if value is None or _REQUEST_ID.match(value):
        return value
    raise _refuse("x-request-id", value, "1 to 128 printable characters")


def _traceparent(value: str | None) -> str | None:
    """What is malformed begins a new trace, as W3C asks: tracing must break no request."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def _tracestate(value: str | None) -> str | None:
    return value if value is not None and _TRACESTATE.fullmatch(value) else None


def _tags(value: str | None) -> dict[str, str]:
    if not value:
        return {}
    tags: dict[str, str] = {}
    with contextlib.suppress(UnicodeError):  # else it stands for itself, byte by byte
        value = value.encode("latin-1").decode("utf-8")
    for pair in value.split(","):
        name, equals, text = pair.strip().partition("=")
        if not equals or not name.strip():
            raise _refuse("x-headgate-tags", value, "name=value pairs, separated by commas")
        tags[name.strip()] = text.strip()
    return check_tags(tags, "x-headgate-tags")


def check_tags(tags: dict[str, str], param: str) -> dict[str, str]:
    """The tags, if they are few, short, and none claims to be team, key or user.

    Raises:
        InvalidRequest: naming `param` (a header or a body field) and the tag.
    """
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"{param} has {len(tags)} tags; allowed: {MAX_TAGS}.", param=param)
    for name, text in tags.items():
        if name in _RESERVED_TAGS:
            raise InvalidRequest(
                f"{param} sets the tag {name!r}, which only the key (team, key) or the body's "
                "user may say.",
                param=param,
            )
        if not name or len(name.encode()) > MAX_TAG_BYTES or len(text.encode()) > MAX_TAG_BYTES:
            raise InvalidRequest(
                f"{param}: the tag {name[:64]!r} is empty or longer than {MAX_TAG_BYTES} bytes.",
                param=param,
            )
    return tags


def all_tags(options: Options, metadata: dict[str, str] | None) -> dict[str, str]:
    """Header tags and body `metadata` together; the header wins."""
    if not metadata:
        return options.tags
    tags = check_tags(metadata, "metadata")
    return check_tags({**tags, **options.tags}, "metadata") if options.tags else tags


def check_request(request: WireRequest) -> None:
    """What types and sampling ranges cannot say.

    Raises:
        InvalidRequest: naming the field.
    """
    if isinstance(request, EmbeddingRequest):
        if not request.input:
            raise InvalidRequest("'input' is empty; send at least one text.", param="input")
        return
    if request.store:
        raise InvalidRequest("store = true is not offered here; leave it out.", param="store")
    if request.service_tier not in (None, "auto", "default"):
        raise InvalidRequest(
            f"service_tier is {request.service_tier!r}; allowed: auto.", param="service_tier"
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream = true.", param="stream_options")
    if isinstance(request, ChatCompletionRequest):
        if not request.messages:
            raise InvalidRequest("'messages' is empty; send at least one.", param="messages")
    elif request.prompt == []:
        raise InvalidRequest("'prompt' is empty; send text or token ids.", param="prompt")
