"""One message to one channel: a signed webhook, Slack's form of one, or mail."""

import asyncio
import base64
import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from gateway.alerts.model import Message
from gateway.alerts.settings import ChannelSettings

TIMEOUT_S = 10.0
_MARKS = {"info": "i", "warning": "!", "critical": "!!"}


class NotDelivered(Exception):
    """The channel did not take it; the message says why."""


async def deliver(
    message: Message, channel: ChannelSettings, client: httpx.AsyncClient, *, now: float
) -> None:
    """Send it. Raises NotDelivered."""
    if channel.kind == "mail":
        try:
            await asyncio.to_thread(_mail, message, channel, now)
        except OSError as error:  # smtplib's errors are among them
            raise NotDelivered(f"{channel.smtp}: {error}") from None
        return
    shape = _slack(message) if channel.kind == "slack" else _webhook(message)
    body = msgspec.json.encode(shape)
    headers = {"content-type": "application/json", "user-agent": "headgate"}
    if channel.kind == "webhook":
        headers |= sign(body, message.id, round(now), channel.secret)
    url = channel.address
    if not url:
        raise NotDelivered(f"${channel.url_env} is not set")
    try:
        answer = await client.post(url, content=body, headers=headers, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise NotDelivered(str(error) or type(error).__name__) from None
    if not answer.is_success:
        raise NotDelivered(f"status {answer.status_code}: {answer.text[:200]}")


def sign(body: bytes, message_id: str, at: int, secret: str | None) -> dict[str, str]:
    """Headers after https://www.standardwebhooks.com; `whsec_` secrets are base64."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(at)}
    if secret:
        coded = secret.removeprefix("whsec_")
        key = base64.b64decode(coded) if secret.startswith("whsec_") else secret.encode()
        signed = f"{message_id}.{at}.".encode() + body
        digest = hmac.new(key, signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def heading(message: Message) -> str:
    """Its one line, with what happened to it."""
    lead = {"resolved": "Resolved: ", "test": "Test: "}.get(message.event, "")
    return f"{lead}{message.title}"


def _webhook(message: Message) -> dict[str, Any]:
    return {
        "id": message.id,
        "event": message.event,
        "kind": message.kind,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "facts": message.facts,
        "opened_at": _moment(message.opened_at),
        "resolved_at": _moment(message.resolved_at),
        "attempt": message.attempt,
        "duplicate_possible": message.attempt > 1,
        **({"html": message.html} if message.html else {}),
    }


def _slack(message: Message) -> dict[str, Any]:
    title = f"[{_MARKS[message.severity]}] {heading(message)}"
    text = _told(message) or title
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": title[:150]}},
        {"type": "section", "text": {"type": "plain_text", "text": text[:2900]}},
    ]
    return {"text": title, "blocks": blocks}


def _told(message: Message) -> str:
    """The text; when it was so, if it is over; and where the same may have come before."""
    over = ""
    if message.opened_at is not None and message.resolved_at is not None:
        over = f"It was so from {_minute(message.opened_at)} to {_minute(message.resolved_at)} UTC."
    again = "(This message may be a repeat.)" if message.attempt > 1 else ""
    return "\n\n".join(part for part in (message.text, over, again) if part)


def _minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def _mail(message: Message, channel: ChannelSettings, now: float) -> None:
    import smtplib  # only where there is mail: megabytes in every gateway else
    import ssl
    from email.message import EmailMessage
    from email.utils import formatdate

    assert channel.smtp is not None, "checked at start"
    assert channel.sender is not None, "checked at start"
    host, _, port = channel.smtp.rpartition(":")
    mail = EmailMessage()
    mail["Subject"] = " ".join(f"[headgate] {heading(message)}".split())
    mail["From"], mail["To"] = channel.sender, ", ".join(channel.to)
    mail["Date"] = formatdate(now)
    mail["Message-ID"] = f"<{message.id}@headgate>"
    facts = "\n".join(f"{name}: {value}" for name, value in message.facts.items())
    told = _told(message)
    mail.set_content("\n\n".join(part for part in (told, facts) if part) or message.title)
    if message.html:
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{message.title.partition(':')[0]}.html")
        mail.add_attachment(message.html, subtype="html", filename=name)
    trust = ssl.create_default_context()
    if channel.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, int(port), timeout=TIMEOUT_S, context=trust)
    else:
        server = smtplib.SMTP(host, int(port), timeout=TIMEOUT_S)
    with server:
        if channel.security == "starttls":
            server.starttls(context=trust)
        if channel.user:
            server.login(channel.user, channel.password)
        server.send_message(mail)


def _moment(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
