"""What podman would write into a container's resolv.conf, written by us."""

from __future__ import annotations

import os
import stat

import pytest

from netns_graft.engines.podman_options import Option
from netns_graft.engines.resolving import Resolving, lasting_volume, resolving
from netns_graft.errors import UsageError

HOST = "search lab.example\nnameserver 127.0.0.53\nnameserver 192.0.2.9\noptions edns0\n"


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (Resolving(("192.0.2.1",)), "search lab.example\nnameserver 192.0.2.1\noptions edns0\n"),
        (Resolving(search=("a.example", "b")), "search a.example b\nnameserver 192.0.2.9\noptions edns0\n"),
        (Resolving(("2001:db8::1", "192.0.2.1"), (".",), ("ndots:2", "rotate")),
         "nameserver 2001:db8::1\nnameserver 192.0.2.1\noptions ndots:2 rotate\n"),
    ],
)  # fmt: skip
def test_what_is_not_said_is_the_hosts(asked, text):
    assert asked.resolv_conf(HOST) == text


def test_a_host_that_asks_only_itself():
    """Any address leads to the forwarder, which asks as the host does."""
    assert Resolving(search=("a",)).resolv_conf("nameserver ::1\n") == "search a\nnameserver 198.18.0.2\n"


@pytest.mark.parametrize("option", [("dns-search", "a b"), ("dns-option", "x\ny"), ("dns-search", "b\u00fccher")])
def test_what_does_not_fit_into_the_file(option):
    with pytest.raises(UsageError, match="does not fit"):
        resolving([Option(*option)])


def test_files_of_one_content_are_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    before = os.umask(0o077)
    try:
        first, second, other = lasting_volume("a\n"), lasting_volume("a\n"), lasting_volume("b\n")
    finally:
        os.umask(before)
    assert first == second != other
    path = first.removeprefix("--volume=").removesuffix(":/etc/resolv.conf:ro,z")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    with open(path) as file:
        assert file.read() == "a\n"
