"""The graft options: how a workload's flows leave and which may, whoever reads them.

The command line takes them as ``--name value``, a hook as ``--set name=value`` and as annotations
``io.netns-graft.name``. There is one parser for all. This module is imported on every start, so only by what is
needed to read options; rich, asyncio and pyroute2 stay out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from netns_graft.errors import ConfigError, UsageError
from netns_graft.policy import Policy, parse_quick_rules

if TYPE_CHECKING:
    from netns_graft.dialling import SelectMode

REPEATABLE = frozenset({"proxy", "allow", "deny"})
FILES = frozenset({"flows", "proxy-credentials", "direct-file", "proxy-file"})  # whose values are paths
SELECT_MODES = ("auto", "random", "only_http_proxy", "only_socks5", "direct")


@dataclass(slots=True, frozen=True)
class GraftOptions:
    """What the graft options say.

    ``proxies``: one item for each ``--proxy``, a URL or a chain joined by commas, to be tried in this order unless
    ``select_proxy_mode`` says otherwise. ``direct_file`` and ``proxy_file`` list the addresses that go directly, and
    the only ones that go by proxy. ``dns_server`` is asked through the proxies, by TCP: "HOST", "HOST:PORT", None for
    the host's resolvers.
    ``policy`` is made of ``rules`` (("allow" | "deny", pattern) in the order given) and ``default``. ``dns``
    None: not told, then synthetic when a rule names a host or a proxy takes names, else forward. ``flows``
    "-" is stderr. ``summary`` None: when stderr is a terminal. ``environ`` is where the proxies' login may
    stand. ``ignore_local`` and ``strict`` speak of mode ptrace alone. ``user``: a login name, None for the caller.
    """

    policy: Policy
    proxies: tuple[str, ...] = field(default=(), repr=False)  # passwords
    proxy_credentials: str | None = None
    select_proxy_mode: SelectMode | None = None
    direct_file: str | None = None
    proxy_file: str | None = None
    default: str = "allow"
    rules: tuple[tuple[str, str], ...] = ()
    dns: str | None = None
    dns_server: str | None = None
    flows: str | None = None
    fail_on_deny: bool = False
    summary: bool | None = None
    accept_first: bool = False
    attribution: Literal["auto", "sock_diag", "proc"] = "auto"
    mode: Literal["route", "ptrace"] = "route"
    ignore_local: bool = True
    strict: bool = False
    user: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def policy_text(self) -> str:
        """The policy in one line, for people: "deny; allow example.com:443"."""
        return "; ".join([self.default, *(f"{action} {pattern}" for action, pattern in self.rules)])


def graft_options(given: argparse.Namespace, environ: Mapping[str, str]) -> GraftOptions:
    """What a parser with ``add_graft_options`` has read. ``ConfigError`` for a policy that cannot be."""
    return GraftOptions(
        policy=parse_quick_rules(given.rules, given.default),
        proxies=tuple(given.proxies),
        proxy_credentials=given.proxy_credentials,
        select_proxy_mode=given.select_proxy_mode,
        direct_file=given.direct_file,
        proxy_file=given.proxy_file,
        default=given.default,
        rules=tuple(given.rules),
        dns=given.dns,
        dns_server=given.dns_server,
        flows=given.flows,
        fail_on_deny=getattr(given, "fail_on_deny", False),
        summary=getattr(given, "summary", None),
        accept_first=given.accept_first,
        attribution=given.attribution,
        mode=given.mode,
        ignore_local=not getattr(given, "not_ignore_local", False),
        strict=getattr(given, "strict", False),
        user=getattr(given, "user", None),
        environ=environ,
    )


def named_options(values: Iterable[tuple[str, str]]) -> GraftOptions:
    """Options by their names without dashes, in their order, as a hook is given them.

    ``ConfigError`` for an unknown name or a value that cannot be used; flags take "true" or "false".
    """
    parser = GraftParser(prog="netns-graft", allow_abbrev=False, add_help=False)
    add_graft_options(parser)
    known = {name: action for action in parser._actions for name in action.option_strings}
    words: list[str] = []
    once: set[str] = set()
    for name, value in values:
        action = known.get(f"--{name}")
        if action is None:
            names = ", ".join(sorted(name.removeprefix("--") for name in known))
            raise ConfigError(f"unknown option {name!r}", hint=f"known are {names}")
        if name not in REPEATABLE and name in once:
            raise ConfigError(f"{name} is given more than once")
        once.add(name)
        if action.nargs != 0:
            words.append(f"--{name}={value}")
        elif value == "true":
            words.append(f"--{name}")
        elif value != "false":
            raise ConfigError(f"{value!r} is neither true nor false", where=name)
    try:
        return graft_options(parser.parse_args(words), {})
    except UsageError as error:
        raise ConfigError(str(error), hint=None) from None


def add_graft_options(parser: argparse.ArgumentParser, *, traces: bool = False) -> None:
    """``traces``: whether ``--mode ptrace`` is to be had. A hook finds its workload begun: too late to trace it."""
    add = parser.add_argument
    add(
        "--proxy",
        action="append",
        default=[],
        dest="proxies",
        metavar="URL[,URL...]",
        type=not_empty,
        help="where allowed flows leave (direct unless told); commas make a chain, a repeated option is the "
        "next to try when one is down",
    )
    add(
        "--proxy-credentials",
        metavar="FILE",
        type=not_empty,
        help="user and password of proxies: lines of user:password or HOST:PORT user:password",
    )
    add(
        "--select-proxy-mode",
        metavar="auto|random|only_http_proxy|only_socks5|direct",
        type=_one_of(*SELECT_MODES),
        help="auto: SOCKS5 first, then HTTP, then directly without any; random: each flow by another one; "
        "only_...: those of one kind; direct: none. Without it, the proxies in their order and never directly",
    )
    add(
        "--direct-file",
        metavar="FILE",
        type=not_empty,
        help="addresses and CIDRs, one on each line: flows to them go directly",
    )
    add(
        "--proxy-file",
        metavar="FILE",
        type=not_empty,
        help="addresses and CIDRs: only flows to them go by the proxies, all others directly",
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
    add(
        "--dns-server",
        metavar="HOST[:PORT]",
        type=not_empty,
        help="forward: ask this resolver, by TCP and through the proxies, rather than the host's own",
    )
    add("--flows", metavar="FILE", type=not_empty, help="append one JSON object per flow; - is stderr")
    add(
        "--accept-first",
        action="store_true",
        help="accept a program's connection before its upstream is reached",
    )
    add(
        "--attribution",
        default="auto",
        metavar="auto|sock_diag|proc",
        type=_one_of("auto", "sock_diag", "proc"),
        help="how a flow's socket is looked up: by the kernel's sock_diag, or in the tables of /proc/net, which takes "
        "milliseconds; auto: the first, unless the kernel refuses it",
    )
    add(
        "--mode",
        default="route",
        metavar="route|ptrace" if traces else "route",
        type=_one_of("route", "ptrace") if traces else _route_only,
        help="how flows reach the forwarder: by the only route of a network namespace"
        + (", or by tracing the command's system calls in the namespace we are in" if traces else ""),
    )


class GraftParser(argparse.ArgumentParser):
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


def _route_only(text: str) -> str:
    if text == "ptrace":
        raise argparse.ArgumentTypeError("mode ptrace is exec's; a container has a namespace, and mode route")
    return _one_of("route")(text)


def not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text
