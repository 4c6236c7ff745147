"""The graft options: how a workload's flows leave and which may. ``exec`` takes them all before its command.

Ours come first; the first word that is not ours starts what is passed on; ``--`` ends ours. No
abbreviations: an option that comes later must not change what a script of today means. This module is
imported on every start, so only by what is needed to read a command line; rich, asyncio and pyroute2 stay
out.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence

from netns_graft.errors import UsageError
from netns_graft.options import GraftOptions, GraftParser, add_graft_options, graft_options, not_empty

PATTERNS_AND_PROXIES = """\
A PATTERN is host[:port], *.host[:port] (names under host, not host itself), cidr[:port],
[v6cidr]:port or :port; a port may be a range, 8000-8100. The first rule that matches wins.
The host's loopback and its own addresses, link-local (cloud metadata), multicast and
broadcast are denied until a rule names them by address or by host.containers.internal.

A proxy URL is direct, socks5://, socks5h:// (names go to the proxy), socks4a:// or http://
(CONNECT), then [user:pass@]host:port. Rather than in a URL, user and password can stand in
NETNS_GRAFT_PROXY_USERNAME and NETNS_GRAFT_PROXY_PASSWORD or in a --proxy-credentials file.
"""
_EXEC_EPILOG = f"""\
{PATTERNS_AND_PROXIES}
Exit status: the command's own (128+N for signal N); 125 netns-graft itself failed; 126 the
command may not be executed; 127 it was not found; 2 wrong usage; 78 with --fail-on-deny.
"""


def parse_exec(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[GraftOptions, list[str]]:
    """What follows ``netns-graft exec``: the options and the command with its arguments.

    ``UsageError``, or ``ConfigError`` with status 2, when they cannot be used; ``--help`` prints and raises
    ``SystemExit(0)``.
    """
    ours, command = split(argv)
    ended = len(ours) + len(command) < len(argv)  # by "--", after which anything is the command's
    if command and not ended and command[0].startswith("-") and command[0] != "-":
        raise _unknown(command[0])
    words = joined(ours)
    given = exec_parser().parse_args(words)
    if given.mode != "ptrace":
        for name, told in (("--not-ignore-local", given.not_ignore_local), ("--strict", given.strict)):
            if told:
                raise UsageError(f"{name} is for mode ptrace", hint=f"--mode ptrace {name}, or leave it out")
    elif given.accept_first:
        raise UsageError("--accept-first is for mode route: a traced connect() waits for its upstream")
    if not command:
        raise UsageError("exec: no command to run", hint="netns-graft exec [OPTIONS] [--] COMMAND [ARG...]")
    if given.graftcp_config is not None:
        given = exec_parser().parse_args([*_from_graftcp(given, words), *words])
    return graft_options(given, environ), command


def _from_graftcp(given: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """What graftcp's configuration file says as options of ours, less those that ``words`` have."""
    from netns_graft.cli.graftcp_config import read_graftcp_config
    from netns_graft.lines import say

    names = {word.partition("=")[0] for word in words}
    config = read_graftcp_config(given.graftcp_config)
    options, notes = config.words(names, traces=given.mode == "ptrace")
    for note in notes:
        say("note", note)
    return options


def split(
    argv: Sequence[str], parser: argparse.ArgumentParser | None = None
) -> tuple[list[str], list[str]]:
    """(the parser's options (``exec``'s) with their values, the rest from the first word that is not ours; a ``--``
    between is dropped).

    ``UsageError`` when one of ours lacks its value, or has one and takes none.
    """
    parser = parser or exec_parser()
    values = takes_value(parser)
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
            raise UsageError(f"{name} needs a value", hint=f"{parser.prog} --help")
        else:
            at += 2
    return list(argv[:at]), list(argv[at:])


@functools.cache
def exec_parser() -> argparse.ArgumentParser:
    """The graft options with their help texts; ``parse_args`` raises ``UsageError``."""
    parser = GraftParser(
        prog="netns-graft exec",
        usage="netns-graft exec [OPTIONS] [--] COMMAND [ARG...]",
        description="Run COMMAND with a network of its own; every flow is decided on, sent on and recorded.",
        epilog=_EXEC_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add_graft_options(parser, traces=True)
    _add_exec_options(parser)
    add_ending_options(parser, "the command succeeded")
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    return parser


def _add_exec_options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for where we start the command ourselves."""
    add = parser.add_argument
    add(
        "--graftcp-config",
        metavar="FILE",
        type=not_empty,
        help="graftcp's configuration file; what other options say goes before it",
    )
    add("--user", metavar="NAME", type=not_empty, help="run the command as this user; root alone may ask for it")
    add(
        "--not-ignore-local",
        action="store_true",
        help="mode ptrace: connections to the loopback and to the host's own addresses are ours too",
    )
    add(
        "--strict",
        action="store_true",
        help="mode ptrace: deny what could pass us by: io_uring, raw sockets, new user namespaces",
    )


def add_ending_options(parser: argparse.ArgumentParser, success: str) -> None:
    """What is told, and with which status, at the end; for the commands that stay until then."""
    add = parser.add_argument
    add(
        "--fail-on-deny",
        action="store_true",
        help=f"exit 78 when anything was denied, though {success}",
    )
    add(
        "--summary",
        action="store_true",
        default=None,
        help="a table of flows on stderr at the end (on a terminal)",
    )
    add("--no-summary", action="store_false", dest="summary", help="no table")


def takes_value(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """Every spelling of the parser's options, and whether a value follows."""
    return {name: action.nargs is None for action in parser._actions for name in action.option_strings}


def joined(ours: Sequence[str], parser: argparse.ArgumentParser | None = None) -> list[str]:
    """``--opt value`` as ``--opt=value``: argparse takes a value that begins with a dash for an option."""
    values = takes_value(parser or exec_parser())
    words: list[str] = []
    waiting = iter(ours)
    for word in waiting:
        words.append(f"{word}={next(waiting)}" if values.get(word) else word)
    return words


def _unknown(word: str) -> UsageError:
    import difflib

    name = word.partition("=")[0]
    near = difflib.get_close_matches(name, takes_value(exec_parser()), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return UsageError(
        f"unknown option {name}", hint=f"{meant}an argument of the command goes after it: COMMAND {name}"
    )
