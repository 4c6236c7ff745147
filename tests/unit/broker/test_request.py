"""The hook's line: what is taken, and that everything else is refused with a reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.broker.request import HookRequest, parse_request, short_id
from netns_graft.errors import GraftError

ID = "0123456789abcdef" * 4
STATE: dict[str, Any] = {
    "ociVersion": "1.0.2", "id": ID, "status": "creating", "pid": 4242, "bundle": "/run/b",
    "annotations": {"io.netns-graft.default": "deny", "org.example": "x"},
}  # fmt: skip


def line(state: object = STATE, **more: object) -> bytes:
    return json.dumps({"stage": "createRuntime", "state": state} | more).encode() + b"\n"


def parsed(given: dict[str, str], settings: list[list[str]] | None = None, **more: object) -> HookRequest:
    return parse_request(line(STATE | {"annotations": given}, options=settings or [], **more))


def test_a_state_and_its_annotations() -> None:
    request = parse_request(line(group="build-1"))
    assert (request.container_id, request.short_id, request.pid, request.bundle) == (ID, ID[:12], 4242, "/run/b")
    assert request.annotations == {"default": "deny"}
    assert request.group == "build-1"
    assert request.options().default == "deny"


def test_status_is_not_looked_at() -> None:
    assert parse_request(line(STATE | {"status": "created"})) == parse_request(line())


def test_settings_come_before_annotations_and_denials_before_permissions() -> None:
    request = parsed(
        {"io.netns-graft.allow": "b.example:443\nc.example", "io.netns-graft.deny": "d.example"},
        [["allow", "a.example"], ["deny", "e.example"]],
    )
    assert request.options().rules == (
        ("allow", "a.example"), ("deny", "e.example"), ("deny", "d.example"),
        ("allow", "b.example:443"), ("allow", "c.example"),
    )  # fmt: skip


def test_an_annotation_cannot_change_a_setting_but_may_repeat_it() -> None:
    assert parsed({"io.netns-graft.default": "deny"}, [["default", "deny"]]).options().default == "deny"
    with pytest.raises(GraftError, match=r"io\.netns-graft\.default: .*cannot be changed"):
        parsed({"io.netns-graft.default": "allow"}, [["default", "deny"]]).options()


def test_annotations_can_be_switched_off() -> None:
    request = parsed({"io.netns-graft.default": "allow", "io.netns-graft.nonsense": ""}, annotations=False)
    assert request.annotations == {}
    assert request.options().default == "allow"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("prox", "direct", "unknown option 'prox'"),
        ("", "x", "unknown option ''"),
        ("help", "true", "unknown option 'help'"),
        ("summary", "true", "unknown option 'summary'"),
        ("default", "maybe", "default"),
        ("allow", "[::", "allow"),
        ("proxy", "ftp://x", "proxy"),
        ("accept-first", "yes", "neither true nor false"),
        ("flows", "-", "no absolute path"),
        ("flows", "flows.jsonl", "no absolute path"),
        ("dns", "", "dns"),
        ("direct-file", "ips.txt", "no absolute path"),
        ("proxy-file", "ips.txt", "no absolute path"),
        ("select-proxy-mode", "best", "not one of auto"),
        ("mode", "ptrace", "mode ptrace is exec's"),
        ("user", "nobody", "unknown option 'user'"),
        ("strict", "true", "unknown option 'strict'"),
    ],
)
def test_what_cannot_be_used_is_refused(name: str, value: str, why: str) -> None:
    request = parsed({f"io.netns-graft.{name}": value})
    with pytest.raises(GraftError, match=why.replace("(", "\\(")):
        from netns_graft.settings import settings_for

        settings_for("container", request.options()).upstreams.close()


@pytest.mark.parametrize(
    "change",
    [
        {"pid": -1}, {"pid": "4242"}, {"pid": True}, {"pid": 1.5}, {"id": ""}, {"id": None}, {"id": "x" * 2000},
        {"bundle": "relative"}, {"bundle": 7}, {"annotations": ["x"]}, {"annotations": {"io.netns-graft.allow": 1}},
    ],
)  # fmt: skip
def test_a_state_that_says_nothing_sensible(change: dict[str, object]) -> None:
    with pytest.raises(GraftError):
        parse_request(line(STATE | change))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"{}\n", b"[]\n", b"null\n", line()[:-20], line() + b"{}", line(stage="prestart"), line(state=[]),
        line(extra=1), line(group="../x"), line(group=""), line(options=[["a"]]), line(options=[["a", 1]]),
        line(options="x"), line(annotations="off"), b"[" * 100_000,
        b'{"stage": "createRuntime", "options": [], "state": {"id": "a"}, "options": [["default", "allow"]]}\n',
    ],
)  # fmt: skip
def test_a_line_that_is_not_the_hooks(data: bytes) -> None:
    with pytest.raises(GraftError):
        parse_request(data)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_request_or_a_refusal(data: bytes) -> None:
    try:
        parse_request(data)
    except GraftError:
        pass


SCALARS = st.none() | st.booleans() | st.integers() | st.text()
KEYS = st.sampled_from(["id", "pid", "bundle", "annotations", "x"])


@given(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=10
    )
)
def test_any_state_is_a_request_or_a_refusal(state: object) -> None:
    try:
        request = parse_request(line(state))
    except GraftError:
        return
    assert "/" not in request.short_id and not request.short_id.startswith(".")


@pytest.mark.parametrize(
    ("container_id", "short"),
    [
        (ID, ID[:12]), ("web", "web"), ("../../etc/x", "_.._etc_x"), ("a b/c", "a_b_c"), ("...", "_"),
        ("é" * 100, "_" * 64),
    ],
)  # fmt: skip
def test_the_name_of_a_container_is_fit_for_a_file(container_id: str, short: str) -> None:
    assert short_id(container_id) == short


def test_the_end_with_the_first_denial() -> None:
    assert not parsed({}).ends_on_deny
    assert parsed({"io.netns-graft.end-on-deny": "true"}).ends_on_deny
    assert parsed({}, [["end-on-deny", "true"]]).ends_on_deny
    assert parsed({"io.netns-graft.end-on-deny": "false"}, [["end-on-deny", "true"]]).ends_on_deny, "never taken back"
    assert parsed({"io.netns-graft.end-on-deny": "true"}, [["default", "deny"]]).options().default == "deny"
    with pytest.raises(GraftError, match="neither true nor false"):
        _ = parsed({"io.netns-graft.end-on-deny": "yes"}).ends_on_deny


def test_nameservers() -> None:
    assert parsed({}).nameservers == ()
    assert parsed({"io.netns-graft.nameserver": "192.0.2.1 2001:db8::1"}).nameservers == ("192.0.2.1", "2001:db8::1")
    settings = [["nameserver", "192.0.2.2"], ["nameserver", "192.0.2.3"]]
    both = parsed({"io.netns-graft.nameserver": "192.0.2.1"}, settings)
    assert both.nameservers == ("192.0.2.2", "192.0.2.3")
    assert both.options().dns_server is None
    for wrong in ("one.example", "127.0.0.1", "169.254.169.253"):
        with pytest.raises(GraftError):
            _ = parsed({"io.netns-graft.nameserver": wrong}).nameservers
