"""Throughput and connections per second of `netns-graft exec` beside no relay at all, and beside its peers.

One run, one machine: client, relay and server share its cores, so only the ratios travel. Everything happens on one
host of the tests' lab; the server has an address of its own on that host's loopback device. The client runs as an
unprivileged user in every row. ``ab`` opens a new connection per request.

Usage: bench.py [--seconds N] [ROW...]      rows by a part of their name; "no relay" is always measured
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lab import addresses as at
from lab.grafting import Host
from lab.identities import installed_command
from lab.internet import Lab

SERVER = "203.0.113.200"  # no other address of the lab
IPERF_PORT, HTTP_PORT = 5201, 8088
# Per measurement: far fewer than there are ephemeral ports, or the kernel's search for a free one is all that is
# measured, of no relay most of all.
CONNECTIONS_AT_MOST = 8_000


@dataclass(frozen=True, slots=True)
class Row:
    """One way to the server: ``wrap`` is put before the client's command line; ``needs`` is a program of Debian's."""

    name: str
    wrap: list[str]
    needs: str | None = None
    server: str = SERVER


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one figure is called, how it is taken, and which way is better."""

    name: str
    unit: str
    take: Callable[[Host, Row, int], float]
    more_is_better: bool = True


def client(host: Host, row: Row, *command: str, seconds: int) -> str:
    done = host.run(*row.wrap, *command, timeout=seconds * 4 + 30)
    if done.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}: {(done.stdout + done.stderr).decode()[-300:]}"
        )
    return done.stdout.decode()


def throughput(streams: int) -> Callable[[Host, Row, int], float]:
    """Gbit/s that arrived, all streams together."""

    def take(host: Host, row: Row, seconds: int) -> float:
        said = client(
            host, row, "iperf3", "--client", row.server, "--port", str(IPERF_PORT), "--json",
            "--time", str(seconds), "--parallel", str(streams), seconds=seconds,
        )  # fmt: skip
        return float(json.loads(said[said.index("{") :])["end"]["sum_received"]["bits_per_second"]) / 1e9

    return take


def connections(parallel: int, pattern: str) -> Callable[[Host, Row, int], float]:
    """A figure of ab's with so many requests under way at a time."""

    def take(host: Host, row: Row, seconds: int) -> float:
        said = client(
            host, row, "ab", "-q", "-t", str(seconds), "-n", str(CONNECTIONS_AT_MOST), "-c", str(parallel),
            f"http://{row.server}:{HTTP_PORT}/", seconds=seconds,
        )  # fmt: skip
        failed = re.search(r"Failed requests: +(\d+)", said)
        if failed is None or int(failed[1]):
            raise RuntimeError(f"ab: {said[-300:]}")
        found = re.search(pattern, said)
        assert found is not None, said
        return float(found[1])

    return take


MEASUREMENTS = [
    Measurement("1 stream", "Gbit/s", throughput(1)),
    Measurement("8 streams", "Gbit/s", throughput(8)),
    Measurement("32 parallel", "conn/s", connections(32, r"Requests per second: +([\d.]+)")),
    Measurement("1 at a time", "ms", connections(1, r"Time per request: +([\d.]+) \[ms\] \(mean\)"), False),
]


def rows(lab: Lab) -> list[Row]:
    graft = [installed_command(), "exec", "--no-summary", "--allow", SERVER]
    socks = f"socks5h://127.0.0.1:{at.SOCKS}"
    chains = lab.file(f"strict_chain\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 {at.SOCKS}\n")
    pasta = ["pasta", "--quiet", "--config-net"]
    return [
        Row("no relay", []),
        Row("netns-graft exec", [*graft, "--"]),
        Row("netns-graft exec --accept-first", [*graft, "--accept-first", "--"]),
        Row("netns-graft exec --flows FILE", [*graft, "--flows", "flows.jsonl", "--"]),
        Row("netns-graft exec --proxy socks5h:// (microsocks)", [*graft, "--proxy", socks, "--"]),
        # The server's address is the host's own, which mode ptrace leaves alone unless told.
        Row("netns-graft exec --mode ptrace", [*graft, "--mode", "ptrace", "--not-ignore-local", "--"]),
        Row("graftcp (mgraftcp), direct", ["mgraftcp", "-n", "--select_proxy_mode", "direct"], "mgraftcp"),
        Row("proxychains4 (microsocks)", ["proxychains4", "-q", "-f", str(chains)], "proxychains4"),
        Row("pasta, tap path", [*pasta, "--"], "pasta"),
        Row("pasta, splice path", [*pasta, "-T", f"{IPERF_PORT},{HTTP_PORT}", "--"], "pasta", "127.0.0.1"),
    ]


def start_servers(lab: Lab) -> None:
    lab.host.run("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
    lab.host.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=1000", "net.core.somaxconn=4096")
    # pasta opens /dev/net/tun as the user that it runs as.
    tun = lab.place / "tun"
    os.mknod(tun, 0o666 | 0o020000, os.makedev(10, 200))
    tun.chmod(0o666)
    if not Path("/dev/net/tun").exists():
        Path("/dev/net").mkdir(exist_ok=True)
        os.mknod("/dev/net/tun", 0o600 | 0o020000, os.makedev(10, 200))
    lab.host.run("mount", "--bind", str(tun), "/dev/net/tun")
    lab.serve(lab.host, "iperf3", "--server", "--port", str(IPERF_PORT), ready=(SERVER, IPERF_PORT))
    place = lab.place
    config = lab.file(f"""\
user www-data;
pid {place}/bench.pid;
error_log {place}/bench-error.log;
daemon off;
worker_processes 1;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    server {{ listen {HTTP_PORT} backlog=4096; location / {{ return 200 "hello\\n"; }} }}
}}
""")
    lab.serve(lab.host, "nginx", "-c", str(config), ready=(SERVER, HTTP_PORT))


def measure(host: Host, row: Row, seconds: int) -> list[float | None]:
    figures: list[float | None] = []
    for measurement in MEASUREMENTS:
        try:
            figures.append(measurement.take(host, row, seconds))
        except (RuntimeError, AssertionError, subprocess.SubprocessError) as error:
            print(f"  {row.name}, {measurement.name}: {error}", file=sys.stderr)
            figures.append(None)
    return figures


def shown(figure: float | None, base: float | None, measurement: Measurement) -> str:
    """A figure and its ratio to no relay, which is better when it is larger, whatever the unit."""
    if figure is None or base is None:
        return "failed".rjust(18)
    ratio = figure / base if measurement.more_is_better else base / figure
    digits = 0 if figure >= 100 else 1 if figure >= 10 else 2
    return f"{figure:.{digits}f} ({ratio:.2f})".rjust(18)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=3, help="per measurement (3)")
    parser.add_argument("rows", nargs="*", help="parts of the names of rows; all unless told")
    options = parser.parse_args()
    lab = Lab()
    try:
        start_servers(lab)
        host = Host(lab, lab.identities["user"], lab.place / "bench")
        print(
            f"{os.cpu_count()} cores, Linux {os.uname().release}; in brackets the share of no relay (1.00)\n"
        )
        heads = [f"{m.name}, {m.unit}".rjust(18) for m in MEASUREMENTS]
        print(" " * 48 + " ".join(heads))
        base: list[float | None] = []
        for row in rows(lab):
            if base and options.rows and not any(part in row.name for part in options.rows):
                continue
            if row.needs is not None and shutil.which(row.needs) is None:
                print(f"{row.name:48}not installed")
                continue
            figures = measure(host, row, options.seconds)
            base = base or figures
            cells = [shown(f, b, m) for f, b, m in zip(figures, base, MEASUREMENTS, strict=True)]
            print(f"{row.name:48}" + " ".join(cells), flush=True)
    finally:
        lab.close()
    return 0 if base and None not in base else 1


if __name__ == "__main__":
    sys.exit(main())
