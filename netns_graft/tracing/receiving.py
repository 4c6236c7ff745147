"""receive calls that tell the sender: a reply from a socket of ours bears the address that was asked.

Programs receive much and ask little, so a call whose sender cannot be ours goes on at once, mostly before anything is
looked at.
"""

from __future__ import annotations

from functools import partial

from netns_graft.tracing.call import Call
from netns_graft.tracing.datagrams import Datagrams
from netns_graft.tracing.names import number_at
from netns_graft.tracing.stopped import Stopped
from netns_graft.wire import ProtocolError, sockaddr

_Place = tuple[int, int, int]  # of a name: where, how much room, where its length is written


class Receiving:
    def __init__(self, stopped: Stopped, datagrams: Datagrams) -> None:
        self._stopped, self._datagrams = stopped, datagrams

    def recvfrom(self, call: Call) -> None:
        name, length_place = call.args[4], call.args[5]
        if not self._datagrams.talks or name == 0 or not self._concerns(call):
            call.go_on()
            return
        try:
            room = number_at(call, length_place)
        except OSError:
            call.go_on()
            return
        call.go_on_then(partial(self._came, [(name, room, length_place)]))

    def recvmsg(self, call: Call) -> None:
        places = self._places(call, call.args[1], 1) if self._datagrams.talks else []
        if places and self._concerns(call):
            call.go_on_then(partial(self._came, places))
        else:
            call.go_on()

    def recvmmsg(self, call: Call) -> None:
        count = min(call.args[2] & 0xFFFFFFFF, sockaddr.MOST_MESSAGES)
        places = self._places(call, call.args[1], count) if self._datagrams.talks else []
        if any(name for name, _, _ in places) and self._concerns(call):
            call.go_on_then(partial(self._came_many, places))
        else:
            call.go_on()

    def _places(self, call: Call, at: int, count: int) -> list[_Place]:
        """Of the names of ``count`` messages; nothing when one message has none."""
        step = sockaddr.MESSAGES_STEP[call.wide] if call.name == "recvmmsg" else sockaddr.MESSAGE_SIZE[call.wide]
        try:
            headers = call.read(at, count * step) if count else b""
        except OSError:
            return []
        offset = sockaddr.NAME_LENGTH_OFFSET[call.wide]
        places = []
        for start in range(0, count * step, step):
            message = sockaddr.parse_message(headers[start : start + step], wide=call.wide)
            places.append((message.name, message.name_length, at + start + offset))
        return [] if count == 1 and places[0][0] == 0 else places

    def _concerns(self, call: Call) -> bool:
        try:
            with call.sock(call.args[0] & 0xFFFFFFFF) as sock:
                return self._datagrams.has_talked(sock)
        except OSError:
            return False

    def _came(self, places: list[_Place], call: Call, result: int) -> None:
        if result < 0:
            return
        for place in places:
            try:
                self._rename(call, place)
            except (OSError, ProtocolError):
                pass  # no name was given, or none of ours, or its memory is gone

    def _came_many(self, places: list[_Place], call: Call, result: int) -> None:
        if result > 0:
            self._came(places[:result], call, 0)

    def _rename(self, call: Call, place: _Place) -> None:
        name, room, length_place = place
        if name == 0:
            return
        size = min(room, number_at(call, length_place))  # the kernel wrote what fits, and tells the whole
        if size < 8:
            return  # no room for a port and an address
        meant = self._datagrams.meant(sockaddr.parse(call.read(name, size).ljust(28, b"\0")))
        if meant is not None:
            call.write(name, sockaddr.build(meant)[:size])
