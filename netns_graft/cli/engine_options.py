"""The command lines of ``run`` and ``build``: our options, then the engine's, which are passed on word for word."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netns_graft.cli.options import PATTERNS_AND_PROXIES, add_ending_options, joined, split, takes_value
from netns_graft.engines import resolving
from netns_graft.engines.podman_options import BUILD, RUN, Option, Verb, read_options, refuse_conflicts, without
from netns_graft.engines.resolving import Resolving
from netns_graft.errors import UsageError
from netns_graft.options import GraftOptions, GraftParser, add_graft_options, graft_options

_RUN_USAGE = """\
netns-graft run [OPTIONS] [PODMAN OPTIONS] IMAGE [ARG...]
       netns-graft run [OPTIONS] --bundle DIR --runtime runc|crun [RUNTIME OPTIONS] [ID]"""
_BUILD_USAGE = "netns-graft build [OPTIONS] [PODMAN BUILD OPTIONS] [CONTEXT]"
_RUN_EPILOG = f"""\
Ours come first; the first word that is not ours starts what podman gets. --network=none and the
hook are added to it.

{PATTERNS_AND_PROXIES}
Exit status: podman's, which is the command's own where it ran; 125 netns-graft or podman itself
failed; 2 wrong usage; 78 with --fail-on-deny.
"""
_BUILD_EPILOG = f"""\
Ours come first; the first word that is not ours starts what podman gets. --network=none and the
hook are added to it. Each RUN is a workload of its own. What podman itself fetches, for FROM and
ADD, and steps that come from the cache, are no flows.

{PATTERNS_AND_PROXIES}
Exit status: podman's; 125 netns-graft itself failed; 2 wrong usage; 78 with --fail-on-deny.
"""


@dataclass(slots=True, frozen=True)
class EngineLine:
    """``passed_on``: the engine's options and arguments; ``read``: those of its options that we could read, but for
    what is in ``resolving``: that is carried by us, and not passed on.
    """

    options: GraftOptions
    passed_on: list[str]
    read: list[Option]
    bundle: str | None = None
    runtime: str | None = None
    resolving: Resolving | None = None


def parse_run(argv: Sequence[str], environ: Mapping[str, str]) -> EngineLine:
    """What follows ``netns-graft run``. ``UsageError`` or ``ConfigError``; ``--help`` prints and exits."""
    parser = run_parser()
    ours, passed_on = _without_dns(*split(argv, parser), parser)
    given = parser.parse_args(joined(ours, parser))
    if given.bundle is None and given.runtime is not None:
        # --runtime is podman's too, and then it is podman's to read.
        ours, passed_on = _without_runtime(ours, passed_on)
        given = parser.parse_args(joined(ours, parser))
    options = graft_options(given, environ)
    if given.bundle is not None:
        if given.runtime is None:
            raise UsageError("--bundle needs --runtime runc or --runtime crun", hint="netns-graft run --help")
        return EngineLine(options, passed_on, [], given.bundle, given.runtime)
    read, words = read_options(passed_on, RUN)
    _refuse_ours(read, RUN, parser)
    refuse_conflicts(read, RUN, environ)
    if not words and not any(option.name == "help" for option in read):
        raise UsageError("run: no image", hint="netns-graft run [OPTIONS] [PODMAN OPTIONS] IMAGE [ARG...]")
    return _line(options, passed_on, read, RUN)


def parse_build(argv: Sequence[str], environ: Mapping[str, str]) -> EngineLine:
    """What follows ``netns-graft build``. ``UsageError`` or ``ConfigError``; ``--help`` prints and exits."""
    parser = build_parser()
    ours, passed_on = _without_dns(*split(argv, parser), parser)
    options = graft_options(parser.parse_args(joined(ours, parser)), environ)
    read, _ = read_options(passed_on, BUILD)
    _refuse_ours(read, BUILD, parser)
    refuse_conflicts(read, BUILD, environ)
    return _line(options, passed_on, read, BUILD)


def _line(options: GraftOptions, passed_on: list[str], read: list[Option], verb: Verb) -> EngineLine:
    asked = resolving.resolving(read)
    if asked is not None and asked.servers and options.dns_server is not None:
        raise UsageError("--dns-server and podman's --dns: questions go to one of them", hint="leave one out")
    kept = without(passed_on, verb, resolving.OPTIONS)
    return EngineLine(
        options, kept, [option for option in read if option.name not in resolving.OPTIONS], resolving=asked
    )


@functools.cache
def run_parser() -> argparse.ArgumentParser:
    description = "Run a container whose every flow is decided on, sent on and recorded."
    parser = _parser("run", _RUN_USAGE, description, _RUN_EPILOG)
    parser.add_argument("--bundle", metavar="DIR", help="an OCI bundle rather than an image, without podman")
    parser.add_argument("--runtime", metavar="runc|crun", help="what runs the bundle")
    return parser


@functools.cache
def build_parser() -> argparse.ArgumentParser:
    return _parser("build", _BUILD_USAGE, "Build an image whose every RUN is grafted.", _BUILD_EPILOG)


def _parser(name: str, usage: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = GraftParser(
        prog=f"netns-graft {name}",
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add_graft_options(parser)
    add_ending_options(parser, "the container succeeded" if name == "run" else "the build succeeded")
    parser.add_argument("--help", action="help", help="show this and exit")  # -h is podman's --hostname
    return parser


def _without_runtime(ours: list[str], passed_on: list[str]) -> tuple[list[str], list[str]]:
    """Cut our words at ``--runtime``: it starts what is passed on."""
    at = next(index for index, word in enumerate(ours) if word.partition("=")[0] == "--runtime")
    return ours[:at], [*ours[at:], *passed_on]


def _without_dns(
    ours: list[str], passed_on: list[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """Cut our words at a ``--dns`` with an address, which is podman's and starts what is passed on."""
    words = joined(ours, parser)
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name == "--dns" and resolving.is_address(value.split(",")[0]):
            return words[:index], [*words[index:], *passed_on]
    return ours, passed_on


def _refuse_ours(read: Sequence[Option], verb: Verb, parser: argparse.ArgumentParser) -> None:
    """One of ours among podman's would be podman's to complain of, in words that do not help."""
    names = {name.removeprefix("--") for name in takes_value(parser)} - {"help", "dns", "runtime"}
    for option in read:
        if option.name in names:
            raise UsageError(
                f"--{option.name} is netns-graft's and goes before podman's options",
                hint=f"netns-graft {verb.name} --{option.name} ... {_first_of(verb)}",
            )


def _first_of(verb: Verb) -> str:
    return "[PODMAN OPTIONS] IMAGE" if verb is RUN else "[PODMAN BUILD OPTIONS] CONTEXT"
