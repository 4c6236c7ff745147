"""The graft options: how a workload's flows leave and which may. ``exec`` takes them all before its command.

Ours come first; the first word that is not ours starts what is passed on; ``--`` ends ours. No
abbreviations: an option that comes later must not change what a script of today means. This module is
imported on every start, so only by what is needed to read a command line; rich, asyncio and pyroute2 stay
out.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from netns_graft.errors import UsageError
from netns_graft.policy import Policy, parse_quick_rules

_EXEC_EPILOG = """\
A PATTERN is host[:port], *.host[:port] (names under host, not host itself), cidr[:port],
[v6cidr]:port or :port; a port may be a range, 8000-8100. The first rule that matches wins.
The host's loopback and its own addresses, link-local (cloud metadata), multicast and
broadcast are denied until a rule names them by address or by host.containers.internal.

A proxy URL is direct, socks5://, socks5h:// (names go to the proxy), socks4a:// or http://
(CONNECT), then [user:pass@]host:port. Rather than in a URL, user and password can stand in
NETNS_GRAFT_PROXY_USERNAME and NETNS_GRAFT_PROXY_PASSWORD or in a --proxy-credentials file.

Exit status: the command's own (128+N for signal N); 125 netns-graft itself failed; 126 the
command may not be executed; 127 it was not found; 2 wrong usage; 78 with --fail-on-deny.
"""


@dataclass(slots=True, frozen=True)
class GraftOptions:
    """What the graft options say.

    ``proxies``: one item for each ``--proxy``, a URL or a chain joined by commas, to be tried in this order.
    ``policy`` is made of ``rules`` (("allow" | "deny", pattern) in the order given) and ``default``. ``dns``
    None: not told, then synthetic when a rule names a host or a proxy takes names, else forward. ``flows``
    "-" is stderr. ``summary`` None: when stderr is a terminal. ``environ`` is where the proxies' login may
    stand.
    """

    policy: Policy
    proxies: tuple[str, ...] = field(default=(), repr=False)  # passwords
    proxy_credentials: str | None = None
    default: str = "allow"
    rules: tuple[tuple[str, str], ...] = ()
    dns: str | None = None
    flows: str | None = None
    fail_on_deny: bool = False
    summary: bool | None = None
    accept_first: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_exec(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[GraftOptions, list[str]]:
    """What follows ``netns-graft exec``: the options and the command with its arguments.

    ``UsageError``, or ``ConfigError`` with status 2, when they cannot be used; ``--help`` prints and raises
    ``SystemExit(0)``.
    """
    ours, command = split(argv)
    ended = len(ours) + len(command) < len(argv)  # by "--", after which anything is the command's
    if command and not ended and command[0].startswith("-") and command[0] != "-":
        raise _unknown(command[0])
    given = exec_parser().parse_args(_joined(ours))
    if not command:
        raise UsageError("exec: no command to run", hint="netns-graft exec [OPTIONS] [--] COMMAND [ARG...]")
    options = GraftOptions(
        policy=parse_quick_rules(given.rules, given.default),
        proxies=tuple(given.proxies),
        proxy_credentials=given.proxy_credentials,
        default=given.default,
        rules=tuple(given.rules),
        dns=given.dns,
        flows=given.flows,
        fail_on_deny=given.fail_on_deny,
        summary=given.summary,
        accept_first=given.accept_first,
        environ=environ,
    )
    return options, command


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(our options with their values, the rest from the first word that is not ours; a ``--`` between is
    dropped).

    ``UsageError`` when one of ours lacks its value, or has one and takes none.
    """
    values = _takes_value()
    at = 0
    while at < len(argv):
        word = argv[at]
        if word == "--":
            return list(argv[:at]), list(argv[at + 1 :])
        name, equals, _ = word.partition("=")
        if name not in values:
            break
        if not values[name]:
            if equals:
                raise UsageError(f"{name} takes no value")
            at += 1
        elif equals:
            at += 1
        elif at + 1 == len(argv) or argv[at + 1] == "--" or argv[at + 1].partition("=")[0] in values:
            raise UsageError(f"{name} needs a value", hint="netns-graft exec --help")
        else:
            at += 2
    return list(argv[:at]), list(argv[at:])


def exec_parser() -> argparse.ArgumentParser:
    """The graft options with their help texts; ``parse_args`` raises ``UsageError``."""
    parser = _Parser(
        prog="netns-graft exec",
        usage="netns-graft exec [OPTIONS] [--] COMMAND [ARG...]",
        description="Run COMMAND with a network of its own; every flow is decided on, sent on and recorded.",
        epilog=_EXEC_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add(
        "--proxy",
        action="append",
        default=[],
        dest="proxies",
        metavar="URL[,URL...]",
        type=_not_empty,
        help="where allowed flows leave (direct unless told); commas make a chain, a repeated option is the "
        "next to try when one is down",
    )
    add(
        "--proxy-credentials",
        metavar="FILE",
        type=_not_empty,
        help="user and password of proxies: lines of user:password or HOST:PORT user:password",
    )
    add(
        "--default",
        default="allow",
        metavar="allow|deny",
        type=_one_of("allow", "deny"),
        help="verdict when no rule matches (allow)",
    )
    for action in ("allow", "deny"):
        add(
            f"--{action}",
            action=_Rule,
            default=[],
            dest="rules",
            metavar="PATTERN",
            help=f"{action} what matches",
        )
    add(
        "--dns",
        metavar="synthetic|forward|off",
        type=_one_of("synthetic", "forward", "off"),
        help="synthetic: each name gets an address of its own, so flows carry names; forward: ask the host's "
        "resolvers. synthetic when a rule names a host or a proxy takes names, else forward",
    )
    add("--flows", metavar="FILE", type=_not_empty, help="append one JSON object per flow; - is stderr")
    add(
        "--fail-on-deny",
        action="store_true",
        help="exit 78 when anything was denied, though the command succeeded",
    )
    add(
        "--summary",
        action="store_true",
        default=None,
        help="a table of flows on stderr at the end (on a terminal)",
    )
    add("--no-summary", action="store_false", dest="summary", help="no table")
    add(
        "--accept-first",
        action="store_true",
        help="accept a program's connection before its upstream is reached",
    )
    add("-h", "--help", action="help", help="show this and exit")
    return parser


class _Parser(argparse.ArgumentParser):
    """Errors are ours: one line and a hint, printed in one place."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "), hint=f"{self.prog} --help")


class _Rule(argparse.Action):
    """``--allow`` and ``--deny`` make one list: their order among each other is what they mean."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert option is not None
        namespace.rules = [*namespace.rules, (option.removeprefix("--"), values)]


def _one_of(*choices: str) -> Callable[[str], str]:
    """argparse's own ``choices`` words its error differently in each Python."""

    def check(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return check


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


@functools.cache
def _takes_value() -> dict[str, bool]:
    """Every spelling of our options, and whether a value follows."""
    return {name: action.nargs is None for action in exec_parser()._actions for name in action.option_strings}


def _joined(ours: Sequence[str]) -> list[str]:
    """``--opt value`` as ``--opt=value``: argparse takes a value that begins with a dash for an option."""
    values = _takes_value()
    words: list[str] = []
    waiting = iter(ours)
    for word in waiting:
        words.append(f"{word}={next(waiting)}" if values.get(word) else word)
    return words


def _unknown(word: str) -> UsageError:
    import difflib

    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, _takes_value(), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return UsageError(
        f"unknown option {name}", hint=f"{meant}an argument of the command goes after it: COMMAND {name}"
    )
