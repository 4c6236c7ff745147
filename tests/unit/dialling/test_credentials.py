"""Logins from the environment and from a file, and that nothing ever shows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from netns_graft.dialling.credentials import Credentials, Login
from netns_graft.errors import ConfigError

SECRET = "s3cr3t"


def from_text(tmp_path: Path, text: str | bytes) -> Credentials:
    file = tmp_path / "credentials"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Credentials.from_file(str(file))


def test_the_environment() -> None:
    both = {"NETNS_GRAFT_PROXY_USERNAME": "u", "NETNS_GRAFT_PROXY_PASSWORD": "p"}
    assert Credentials.from_environment(both).look_up("a", 1) == Login("u", "p")
    assert Credentials.from_environment({}).look_up("a", 1) is None
    assert Credentials.from_environment(dict.fromkeys(both, "")).look_up("a", 1) is None


def test_a_password_alone_belongs_to_whoever_the_url_names() -> None:
    credentials = Credentials.from_environment({"NETNS_GRAFT_PROXY_PASSWORD": "p"})
    assert credentials.look_up("a", 1) is None
    assert credentials.look_up("a", 1, "anna") == Login("anna", "p")


def test_another_users_password_is_not_given_away() -> None:
    credentials = Credentials(Login("bob", "p"))
    assert credentials.look_up("a", 1, "anna") is None
    assert credentials.look_up("a", 1, "bob") == Login("bob", "p")


def test_a_file(tmp_path: Path) -> None:
    credentials = from_text(
        tmp_path,
        "\ufeff# for all\r\n\n  all:the:rest # is the password \r\n"
        "proxy.example:1080 one:x y\n[2001:DB8::1]:1080\ttwo:\n10.0.0.1:3128 three:ü\n",
    )
    assert credentials.look_up("else.example", 1080) == Login("all", "the:rest # is the password ")
    assert credentials.look_up("proxy.example", 1080) == Login("one", "x y")
    assert credentials.look_up("proxy.example", 1081) == Login("all", "the:rest # is the password ")
    assert credentials.look_up("2001:db8::1", 1080) == Login("two", "")
    assert credentials.look_up("10.0.0.1", 3128) == Login("three", "ü")


def test_the_line_for_one_proxy_goes_before_the_environment_and_that_before_the_line_for_all(
    tmp_path: Path,
) -> None:
    environment = Credentials.from_environment({"NETNS_GRAFT_PROXY_USERNAME": "env", "NETNS_GRAFT_PROXY_PASSWORD": "p"})
    both = environment.or_else(from_text(tmp_path, "all:p\na:1 one:p\n"))
    assert both.look_up("a", 1) == Login("one", "p")
    assert both.look_up("b", 1) == Login("env", "p")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (f"# x\n{SECRET}\n", 2, "neither"),
        (f":{SECRET}\n", 1, "neither"),
        (f"a:1 {SECRET}\n", 1, "neither"),
        (f"a:99999 u:{SECRET}\n", 1, "port"),
        (f"a:0 u:{SECRET}\n", 1, "port"),
        (f"a..b:1 u:{SECRET}\n", 1, "HOST:PORT"),
        (f"[1.2.3.4]:1 u:{SECRET}\n", 1, "HOST:PORT"),
        (f"u:{SECRET}\nv:{SECRET}\n", 2, "second"),
        (f"A:1 u:{SECRET}\na:1 v:{SECRET}\n", 2, "second"),
    ],
)
def test_a_line_that_cannot_be_used(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        from_text(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/credentials:{line}: ")
    assert SECRET not in str(caught.value) + str(caught.value.hint)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Credentials.from_file(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="directory"):
        Credentials.from_file(str(tmp_path))
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        from_text(tmp_path, b"user:\xff\xfe")
    assert caught.value.__cause__ is None


def test_no_repr_shows_anything(tmp_path: Path) -> None:
    credentials = from_text(tmp_path, f"user:{SECRET}\nh:1 user:{SECRET}\n")
    assert SECRET not in repr(credentials) + repr(credentials.look_up("h", 1)) + str(credentials.hops)
