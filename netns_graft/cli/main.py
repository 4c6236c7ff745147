"""The command line's way in: which command, and how a command's failure is told.

Whatever goes wrong ends in one line on stderr and an exit status of the contract. What a command needs is
imported when it is called.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from netns_graft import __version__
from netns_graft.cli.argv import hide_secrets_in_ps
from netns_graft.cli.terminal import fill_standard_descriptors, flush_stdout, print_error
from netns_graft.errors import GraftError, UsageError

_HELP = """\
usage: netns-graft COMMAND ...

A network for commands and containers that nobody has to trust, and that tells you which process
asked.

  netns-graft exec  [OPTIONS] [--] COMMAND [ARG...]             a command in a graft
  netns-graft run   [OPTIONS] [PODMAN OPTIONS] IMAGE [ARG...]   a container in a graft
  netns-graft build [OPTIONS] [PODMAN BUILD OPTIONS] CONTEXT    an image, every RUN in a graft
  netns-graft hook  install|uninstall|status                    grafts by podman alone, by annotation
  netns-graft ps    [--json]                                    what is grafted now
  netns-graft flows [WORKLOAD] [--follow] [--json]              what it contacts
  netns-graft doctor [--json]                                   what on this host helps or hinders
  netns-graft serve                                             the broker of hooks, in the foreground
  netns-graft demo                                              see it work, on this machine alone

  netns-graft COMMAND --help                         what a command takes
  netns-graft --version | --help
"""

_DEMO_HELP = """\
usage: netns-graft demo

Starts a small server in a place of its own, runs a grafted program that fetches from it, tries
something that is denied, and explains what was recorded. No Internet, no engine, no root needed.
"""

_INTERRUPTED = 130  # 128 + SIGINT
_READER_GONE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``netns-graft`` with these arguments (those of the process unless given); the exit status."""
    fill_standard_descriptors()
    if argv is None:
        hide_secrets_in_ps(sys.argv)
        argv = sys.argv[1:]
    try:
        status = _dispatch(argv)
    except GraftError as error:
        print_error(error)
        status = error.status
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except SystemExit as error:  # argparse, after --help
        status = error.code if isinstance(error.code, int) else 0
    except Exception as error:  # noqa: BLE001 - a traceback helps nobody who did not write this
        if isinstance(error, BrokenPipeError) and not flush_stdout():
            return _READER_GONE
        if os.environ.get("NETNS_GRAFT_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        print_error(GraftError(f"internal error: {type(error).__name__}: {error}", hint=_report_hint()))
        status = GraftError.status
    return status if flush_stdout() else _READER_GONE


def _dispatch(argv: Sequence[str]) -> int:
    if not argv:
        raise UsageError("no command given", hint="netns-graft --help")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if name == "--version":
        print(f"netns-graft {__version__}")
        return 0
    command = _COMMANDS.get(name)
    if command is None:
        raise _unknown(name)
    return command(rest)


def _exec(argv: Sequence[str]) -> int:
    from netns_graft.cli.options import parse_exec

    options, command = parse_exec(argv, os.environ)
    from netns_graft.cli.exec import run_exec

    return run_exec(options, command)


def _serve(argv: Sequence[str]) -> int:
    from netns_graft.cli.serve import run_serve

    return run_serve(argv)


def _demo(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        print(_DEMO_HELP, end="")
        return 0
    if argv:
        raise UsageError(f"demo takes no arguments, not {argv[0]!r}", hint="netns-graft demo --help")
    from netns_graft.cli.demo import run_demo

    return run_demo()


def _doctor(argv: Sequence[str]) -> int:
    from netns_graft.cli.doctor import run_doctor

    return run_doctor(argv)


def _run(argv: Sequence[str]) -> int:
    from netns_graft.cli.run import run_run

    return run_run(argv, os.environ)


def _build(argv: Sequence[str]) -> int:
    from netns_graft.cli.build import run_build

    return run_build(argv, os.environ)


def _hook(argv: Sequence[str]) -> int:
    from netns_graft.cli.hook import run_hook

    return run_hook(argv, os.environ)


def _ps(argv: Sequence[str]) -> int:
    from netns_graft.cli.ps import run_ps

    return run_ps(argv)


def _flows(argv: Sequence[str]) -> int:
    from netns_graft.cli.flows import run_flows

    return run_flows(argv)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "exec": _exec,
    "run": _run,
    "build": _build,
    "hook": _hook,
    "ps": _ps,
    "flows": _flows,
    "doctor": _doctor,
    "serve": _serve,
    "demo": _demo,
}


def _unknown(name: str) -> UsageError:
    import difflib

    kind = "option" if name.startswith("-") else "command"
    near = difflib.get_close_matches(name, [*_COMMANDS, "--help", "--version"], n=1)
    return UsageError(
        f"unknown {kind} {name!r}", hint=f"did you mean {near[0]}?" if near else "netns-graft --help"
    )


def _report_hint() -> str | None:
    if os.environ.get("NETNS_GRAFT_DEBUG") == "1":
        return None
    return "this is a defect of netns-graft; NETNS_GRAFT_DEBUG=1 shows where"
