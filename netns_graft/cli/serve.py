"""``netns-graft serve``: the broker in the foreground."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from netns_graft.errors import GraftError
from netns_graft.linux import places
from netns_graft.options import GraftParser

_EPILOG = """\
Hooks start it by themselves when there is none; in the foreground it shows its log. One broker
serves one user namespace: an engine's containers have theirs, reached by podman unshare.
"""


def run_serve(argv: Sequence[str]) -> int:
    """The exit status. GraftError when it cannot begin."""
    parser = GraftParser(
        prog="netns-graft serve",
        description="Answer the hooks of container engines, in the foreground.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runtime-dir", metavar="DIR", help="where its sockets are ($XDG_RUNTIME_DIR/netns-graft)")
    parser.add_argument(
        "--idle", metavar="SECONDS", type=_seconds, default=600.0, help="leave after so long without work (600)"
    )
    given = parser.parse_args(argv)
    from netns_graft.broker.zygote import serve

    try:
        runtime = given.runtime_dir or places.runtime_dir()
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
    return serve(os.path.abspath(runtime), given.idle)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("a number of seconds above 0")
    return value
