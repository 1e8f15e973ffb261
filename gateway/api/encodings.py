"""Bodies that clients and proxies have packed: `Content-Encoding: gzip` or `deflate`."""

import zlib

from gateway.errors import InvalidRequest, RequestTooLarge, UnsupportedEncoding

_ANY = 32 + zlib.MAX_WBITS
"""zlib's word for either header, gzip's or its own."""


def unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body as its client meant it.

    Args:
        encoding: the header's value.
        max_bytes: of the result. No more than that is ever unpacked: a few bytes can say billions.

    Raises:
        UnsupportedEncoding: neither gzip nor deflate, or more than one.
        InvalidRequest: it is not what the header says, or has no end.
        RequestTooLarge: it would be larger.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedEncoding(
            f"Content-Encoding is {encoding[:64]!r}; allowed: gzip, deflate, or none."
        )
    raw = name == "deflate" and not _has_zlib_header(body)
    try:
        return _inflated(body, -zlib.MAX_WBITS if raw else _ANY, max_bytes)
    except (zlib.error, EOFError) as error:
        raise InvalidRequest(
            f"The request body is not valid {name}, which Content-Encoding says it is: {error}.",
            param="content-encoding",
        ) from None


def _inflated(body: bytes, wbits: int, max_bytes: int) -> bytes:
    """Of one gzip member after another. Raises zlib.error, EOFError, RequestTooLarge."""
    parts, left = [], max_bytes
    while body:
        unpacking = zlib.decompressobj(wbits)
        part = unpacking.decompress(body, left + 1)
        left -= len(part)
        if left < 0:
            raise RequestTooLarge(f"The unpacked request body is larger than {max_bytes} bytes.")
        if not unpacking.eof:
            raise EOFError("it ends too early")
        parts.append(part)
        body = unpacking.unused_data
    return b"".join(parts)


def _has_zlib_header(body: bytes) -> bool:
    """RFC 1950's two bytes; some clients send bare deflate, which RFC 9110 did not mean."""
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
