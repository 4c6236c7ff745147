"""The demo believes nothing that it has not seen: each claim, broken, is a fault in words."""

from __future__ import annotations

from typing import Any

import pytest

from netns_graft.cli.demo import PLACES, Record, Visits, faults

PID = 4250
EVERYWHERE = {place.url: place.answer for place in PLACES}
GRAFTED = {place.url: place.answer if place.verdict == "allow" else "No route to host" for place in PLACES}
REQUESTS = [{"host": "example.com", "from": "192.0.2.10"}]
FORBIDDEN = "http://forbidden.example/"


def flows(**of_the_last: Any) -> list[Record]:
    """A flow for each place that has one; ``of_the_last`` replaces fields of the last."""
    found: list[Record] = [
        {
            "protocol": "tcp",
            "destination": {"host": place.host, "address": place.host, "port": place.port},
            "process": {"pid": PID},
            "verdict": place.verdict,
            "rule": place.rule,
            "bytes_received": 180 if place.verdict == "allow" else 0,
        }
        for place in PLACES
        if place.rule is not None
    ]
    found[-1].update(of_the_last)
    return found


def check(
    before: dict[str, str] = EVERYWHERE,
    after: dict[str, str] = GRAFTED,
    records: list[Record] | None = None,
    requests: list[Record] = REQUESTS,
    pid: int | None = PID,
) -> list[str]:
    return faults(Visits(1, before), Visits(pid, after), flows() if records is None else records, requests)


def test_all_is_well() -> None:
    assert check() == []


def test_a_place_that_cannot_be_reached_anyway() -> None:
    """A denial shows nothing if nobody was there."""
    assert check(before=EVERYWHERE | {FORBIDDEN: "Connection refused"}) == [
        "without a graft, http://forbidden.example/ gave 'Connection refused'"
    ]


def test_the_allowed_place_is_not_reached() -> None:
    assert check(after=GRAFTED | {"http://example.com/": "No route to host"}) == [
        "http://example.com/ is allowed, but gave 'No route to host'"
    ]
    assert check(after={url: GRAFTED[url] for url in GRAFTED if "example.com" not in url}) == [
        "http://example.com/ is allowed, but gave 'nothing'"
    ]


@pytest.mark.parametrize("place", [place for place in PLACES if place.verdict == "deny"], ids=lambda place: place.url)
def test_a_denied_place_is_reached(place: Any) -> None:
    assert check(after=GRAFTED | {place.url: place.answer}) == [f"{place.url} was reached, though nothing allows it"]


def test_a_denied_place_gives_a_page_of_somebody_else() -> None:
    assert check(after=GRAFTED | {FORBIDDEN: "200 Surprise"}) == [f"{FORBIDDEN} was reached, though nothing allows it"]


@pytest.mark.parametrize(
    "changed",
    [
        {"process": None},
        {"process": {"pid": 1}},
        {"verdict": "allow"},
        {"rule": "default"},
        {"bytes_received": 1},
        {"protocol": "dns"},
        {"destination": {"host": "host.containers.internal", "address": "198.18.1.2", "port": 80}},
    ],
    ids=str,
)
def test_a_flow_that_is_not_what_is_claimed(changed: dict[str, Any]) -> None:
    assert check(records=flows(**changed)) == [
        "no flow to host.containers.internal:8080 says deny, protected:host, PID 4250"
    ]


def test_a_program_that_never_said_its_pid() -> None:
    assert len(check(pid=None)) == 4


def test_a_server_that_was_reached_in_silence() -> None:
    assert check(requests=[*REQUESTS, {"host": "169.254.169.254", "from": "192.0.2.10"}]) == [
        "servers were reached that nothing allows: 169.254.169.254"
    ]


@pytest.mark.parametrize(
    ("output", "pid", "outcomes"),
    [
        (b"", None, {}),
        (b"Traceback\n", None, {}),
        (b"PID 17\n", 17, {}),
        (b"PID 17\nhttp://a/\t200 x\ty\nnoise\n", 17, {"http://a/": "200 x\ty", "noise": ""}),
        (b"PID \xb2\nhttp://\xff/\tx\n", None, {"http://\ufffd/": "x"}),
    ],
)
def test_what_the_program_said(output: bytes, pid: int | None, outcomes: dict[str, str]) -> None:
    assert Visits.parse(output) == Visits(pid, outcomes)
