"""What ``--proxy`` may say, and that no error shows a password, however wrong the URL is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netns_graft.dialling.credentials import Credentials, Login
from netns_graft.dialling.url import Hop, Scheme, parse_chain, redact
from netns_graft.errors import ConfigError

NONE = Credentials()


@pytest.mark.parametrize(
    ("url", "hop"),
    [
        ("socks5://127.0.0.1:1080", Hop(Scheme.SOCKS5, "127.0.0.1", 1080)),
        ("SOCKS5H://Proxy.Example:1", Hop(Scheme.SOCKS5H, "proxy.example", 1)),
        ("socks4a://[::1]:9050", Hop(Scheme.SOCKS4A, "::1", 9050)),
        ("http://proxy.example:3128/", Hop(Scheme.HTTP, "proxy.example", 3128)),
        ("http://proxy.example", Hop(Scheme.HTTP, "proxy.example", 8080)),
        ("socks5h://[2001:DB8::1]", Hop(Scheme.SOCKS5H, "2001:db8::1", 1080)),
        (" socks5://bücher.example. ", Hop(Scheme.SOCKS5, "xn--bcher-kva.example", 1080)),
        ("socks5://u:p@h:1", Hop(Scheme.SOCKS5, "h", 1, Login("u", "p"))),
        ("socks5://u%40x:p%2C%2F%3a%25@h:1", Hop(Scheme.SOCKS5, "h", 1, Login("u@x", "p,/:%"))),
        ("socks5://u:p:q@h:1", Hop(Scheme.SOCKS5, "h", 1, Login("u", "p:q"))),
        ("http://%C3%BC:@h:1", Hop(Scheme.HTTP, "h", 1, Login("ü", ""))),
        ("socks4a://u@h:1", Hop(Scheme.SOCKS4A, "h", 1, Login("u", None))),
        ("socks5://@h:1", Hop(Scheme.SOCKS5, "h", 1)),
        (f"socks5://{'u' * 255}:{'p' * 255}@h:1", Hop(Scheme.SOCKS5, "h", 1, Login("u" * 255, "p" * 255))),
    ],
)
def test_one_proxy(url: str, hop: Hop) -> None:
    assert parse_chain(url, NONE) == (hop,)


def test_direct_and_chains() -> None:
    assert parse_chain("direct", NONE) == ()
    chain = parse_chain("socks5://a:1, http://u:p@[::1]:2,socks5h://c", NONE)
    assert [hop.label for hop in chain] == ["socks5://a:1", "http://[::1]:2", "socks5h://c:1080"]


@pytest.mark.parametrize(
    ("url", "problem", "hint"),
    [
        ("", "empty", "known are direct"),
        ("socks5://a,", "empty", ""),
        ("127.0.0.1:1080", "not a proxy URL", "known are direct"),
        ("socks://a:1", "unknown kind", "socks5h://"),
        ("https://a:1", "unknown kind", "socks5h://"),
        ("socks5://a:1,ftp://b", "unknown kind", "socks5h://"),
        ("direct,socks5://a", "'direct' cannot be", ""),
        ("socks5://", "no host", ""),
        ("socks5://:1080", "no host", ""),
        ("socks5://u:s3cr3t@:1080", "no host", ""),
        ("socks5://a b:1", "not a host name", ""),
        ("socks5://a..b:1", "not a host name", ""),
        ("socks5://::1:1080", "brackets", ""),
        ("socks5://[::1", "brackets", ""),
        ("socks5://[::1]1080", "brackets", ""),
        ("socks5://[10.0.0.1]:1080", "no IPv6 address", ""),
        ("socks5://[fe80::1%eth0", "brackets", ""),
        ("socks5://a:", "port", ""),
        ("socks5://a:0", "port", ""),
        ("socks5://a:65536", "port", ""),
        ("socks5://a:+80", "port", ""),
        ("socks5://a:٣", "port", ""),
        ("http://a:1/path", "ends after the port", ""),
        ("http://a:1?s3cr3t", "ends after the port", ""),
        ("http://a:1#s3cr3t", "ends after the port", ""),
        ("http://u:s3cr3t/x@a:1", "percent-encoded", "%2F"),
        ("http://u:s3cr3t,x@a:1", "port", ""),
        ("http://u:1,s3cr3t@a:1", "not a proxy URL", "%2C"),
        ("http://u:%ff@a:1", "UTF-8", ""),
        ("http://u:\udcff@a:1", "UTF-8", ""),
        ("socks5://:s3cr3t@a:1", "without a user name", ""),
        ("http://s3cr3t%3Ax:p@a:1", "colon", ""),
        ("http://anna@a:1", "no password", "NETNS_GRAFT_PROXY_PASSWORD"),
        ("socks5://anna@a:1", "no password", "--proxy-credentials"),
        ("socks5://anna:@a:1", "empty password", ""),
        ("socks5://ä:s3cr3t@a:1", "ASCII", ""),
        (f"socks5://{'u' * 256}:s3cr3t@a:1", "255 bytes", ""),
        (f"socks5://u:{'s3cr3t' * 50}@a:1", "255 bytes", ""),
        (f"http://u:{'s3cr3t' * 5000}@a:1", "4096 bytes", ""),
        ("socks4a://u:s3cr3t@a:1", "no password", ""),
        ("socks4a://u%00x@a:1", "zero byte", ""),
        ("socks4a://a:1,http://[::1]:2", "IPv6", ""),
    ],
)
def test_what_cannot_be_used(url: str, problem: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_chain(url, NONE)
    error = caught.value
    assert error.status == 2
    assert str(error).startswith("--proxy: ")
    assert hint in (error.hint or "")
    assert "s3cr3t" not in str(error) + str(error.hint)


def test_logins_that_do_not_stand_in_the_url() -> None:
    known = Credentials(Login("all", "p"), {("h", 1): Login("one", "q")})
    assert parse_chain("socks5://h:1", known)[0].login == Login("one", "q")
    assert parse_chain("http://other:1", known)[0].login == Login("all", "p")
    assert parse_chain("socks4a://other:1", known)[0].login == Login("all", None)
    assert parse_chain("http://all@other:1", known)[0].login == Login("all", "p")
    assert parse_chain("http://own:x@h:1", known)[0].login == Login("own", "x")
    assert parse_chain("direct", known) == ()
    with pytest.raises(ConfigError, match="no password"):
        parse_chain("http://somebody-else@h:1", known)
    with pytest.raises(ConfigError, match="no password"):
        parse_chain("http://h:1", Credentials(Login("half", None)))
    with pytest.raises(ConfigError, match="ASCII"):
        parse_chain("socks5://h:1", Credentials(Login("ü", "ü")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("direct", "direct"),
        ("socks5h://a:1", "socks5h://a:1"),
        ("socks5h://u:p@a:1", "socks5h://***@a:1"),
        ("http://u:p@a:1,socks5://v:q@b:2,direct", "http://***@a:1,socks5://***@b:2,direct"),
        ("http://u:p,q@a:1", "http://***@a:1"),
        ("http://u:p@q/r@a:1", "http://***@a:1"),
        ("u:p@a:1", "***@a:1"),
        ("http://u:p,socks5://x@a:1", "http://***,socks5://***@a:1"),
        ("ftp://u:p@a:1/x?y=z#w", "ftp://***@a:1/x?***"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert redact(url) == shown


_WORDS = st.sampled_from(
    ["socks5://", "http://", "ftp://", "direct", ",", ":", "/", "[", "]", "::1", "h", "99", "?", "#", "%"]
)


@settings(deadline=None)
@given(st.lists(_WORDS | st.characters(exclude_characters="@"), max_size=8).map("".join), st.sampled_from(list(Scheme)))
@example("socks5://u", Scheme.HTTP)
def test_a_secret_before_an_at_sign_is_never_shown_and_nothing_but_config_errors_come(
    noise: str, scheme: Scheme
) -> None:
    for url in (
        f"{scheme}://u:HIDDEN@{noise}",
        f"{scheme}://u:HIDDEN{re.sub('[a-z]+://|direct', '', noise)}@h:1",
        noise,
    ):
        assert "HIDDEN" not in redact(url)
        try:
            hops = parse_chain(url, NONE)
        except ConfigError as error:
            assert "HIDDEN" not in f"{error} {error.hint}"
        else:
            assert "HIDDEN" not in repr(hops) + "".join(hop.label for hop in hops)
