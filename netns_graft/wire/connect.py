"""The client's half of HTTP CONNECT (RFC 9110, 9.3.6), on h11: bytes in, a tunnel or a refusal out.

Why h11 and not twenty lines of our own: where the proxy's header ends is where the destination's bytes begin,
and ``trailing_data`` says so to the byte, however the segments were cut.

Invariant: the answer does not depend on how the bytes were cut. h11 alone does not give that for oversized
headers (it looks at the size only while the header is incomplete), so the header's length is budgeted here.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

import h11

from netns_graft.wire import ProtocolError

# Interim responses count as well. Proxies answer in a few hundred bytes; servers commonly cap headers at 8 or
# 16 KiB.
HEADER_LIMIT = 16 * 1024
REASON_LIMIT = 80  # characters; the text is the proxy's and goes into a flow's record


@dataclass(slots=True, frozen=True)
class Tunnel:
    """The proxy said 2xx; ``early`` are the bytes of the destination that came joined with its answer."""

    early: bytes


@dataclass(slots=True, frozen=True)
class Refusal:
    """The proxy said anything else: its final status, and its reason fit for a record. A body is not read."""

    status: int
    reason: str


class Connect:
    """One CONNECT to ``host`` (a name or a literal address without brackets) and ``port``.

    Send ``request``, then give ``receive`` whatever arrives until it answers. Raises ``ValueError`` for a
    host that cannot stand in a request.
    """

    def __init__(self, host: str, port: int, *, username: str | None = None, password: str = "") -> None:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = [("Host", authority), ("User-Agent", "netns-graft")]
        if username is not None:
            token = b64encode(f"{username}:{password}".encode()).decode()
            headers.append(("Proxy-Authorization", f"Basic {token}"))
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_LIMIT + 1)
        try:
            request = self._connection.send(h11.Request(method="CONNECT", target=authority, headers=headers))
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise ValueError(f"no host for a CONNECT request: {host!r}") from error
        self.request: bytes = (request or b"") + (self._connection.send(h11.EndOfMessage()) or b"")
        self._budget = HEADER_LIMIT

    def receive(self, data: bytes) -> Tunnel | Refusal | None:
        """Take the proxy's next bytes, ``b""`` for its end. ``None``: more are needed.

        Raises ``ProtocolError`` for what is no HTTP/1 answer, for an end in the middle and for endless
        headers.
        """
        if not data:
            raise ProtocolError("closed the connection instead of answering CONNECT")
        fed, rest = data[: self._budget], data[self._budget :]
        self._budget -= len(fed)
        try:
            self._connection.receive_data(fed)
            response = self._response()
        except h11.ProtocolError as error:
            raise ProtocolError("gives an answer that is not HTTP/1") from error
        if response is None:
            if self._budget == 0:
                raise ProtocolError(f"answers CONNECT with headers of more than {HEADER_LIMIT} bytes")
            return None
        if not 200 <= response.status_code < 300:
            return Refusal(response.status_code, _printable(response.reason.decode("utf-8", "replace")))
        return Tunnel(self._connection.trailing_data[0] + rest)

    def _response(self) -> h11.Response | None:
        """The final response, once its header is complete; interim ones (1xx) are passed over."""
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.InformationalResponse | h11.Response):
                # h11 reads any HTTP/d.d; a tunnel is only ours to use when the answer is of the 1.x family.
                if not event.http_version.startswith(b"1."):
                    raise ProtocolError(f"answers in HTTP {event.http_version.decode()}, not HTTP/1")
                if isinstance(event, h11.Response):
                    return event
            else:
                return None


def _printable(text: str) -> str:
    """Foreign text for a one-line record: no control characters, no runs of spaces, cut to a sane length."""
    clean = " ".join("".join(c if c.isprintable() and c != "\ufffd" else " " for c in text).split())
    return clean if len(clean) <= REASON_LIMIT else clean[: REASON_LIMIT - 1] + "…"
