"""Foreign bytes in, plain values out. No sockets, no clock, no asyncio: that makes these parsers easy to fuzz.

Invariant: whatever bytes come, in one chunk or one by one, a parser here gives a value, says "need more", or raises
``ProtocolError``. Nothing else.
"""


class ProtocolError(Exception):
    """The other end does not keep to its protocol. The text is fit for a flow's ``error`` field."""
