"""What the hook costs a container's start: `podman run` with it and without, warm and cold, beside slirp4netns.

The runs are interleaved, so that whatever else the machine does hits all alike; medians are compared. "Warm" is with
a broker that waits, "cold" the very first container, for which the hook has to start one, "to a file" with
--annotation io.netns-graft.flows=FILE, whose records are waited for at the end by a second start of the hook. Run by
bench/run, as root: podman itself runs as an unprivileged user. Says "missed" where the hook costs more than it may.

Usage: start.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lab import containers
from lab.containers import IMAGE, Engine, brokers, gone, kill
from lab.grafting import Host
from lab.internet import Lab

PAUSE = 0.5  # seconds for what the run before left to do: a network's end, the broker's next spare
LIMITS = {"graft, warm": 0.040, "graft, cold": 0.600}  # seconds more than --network=none alone


def allow_tun(lab: Lab) -> None:
    """slirp4netns wants /dev/net/tun, which some machines keep for root: a node of our own over it."""
    node = lab.place / "tun"
    os.mknod(node, 0o020666, os.makedev(10, 200))
    node.chmod(0o666)
    lab.host.run("mount", "--bind", str(node), "/dev/net/tun")


def seconds(engine: Engine, argv: list[str]) -> float:
    time.sleep(PAUSE)
    began = time.monotonic()
    engine.run(*argv).ok()
    return time.monotonic() - began


def kill_brokers() -> None:
    for broker in brokers():
        kill(broker.pid)
        gone(broker)


def measure(engine: Engine, rounds: int) -> dict[str, list[float]]:
    none = engine.run_argv("--rm", IMAGE, "true", annotations={})
    graft = engine.run_argv("--rm", IMAGE, "true")
    slirp = ["--network=slirp4netns" if word == "--network=none" else word for word in none]
    flows = {"default": "allow", "flows": f"{engine.host.identity.home}/flows.jsonl"}
    to_file = engine.run_argv("--rm", IMAGE, "true", annotations=flows)
    engine.run(*graft).ok()
    kinds = {"none": none, "graft, warm": graft, "graft, to a file": to_file, "slirp4netns": slirp}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, argv in kinds.items():
            times[name].append(seconds(engine, argv))
    times["graft, cold"] = []
    for _ in range(rounds // 3 + 1):
        kill_brokers()
        times["graft, cold"].append(seconds(engine, graft))
    return times


def main(rounds: int) -> None:
    lab = Lab()
    try:
        containers.prepare_host(lab)
        allow_tun(lab)
        image = lab.place / "image.tar"
        containers.make_image(image)
        image.chmod(0o644)
        for runtime in ("crun", "runc"):
            engine = Engine(Host(lab, lab.identities["user"], lab.place / runtime), runtime)
            engine.podman("import", "--quiet", str(image), IMAGE).ok()
            engine.write_hooks()
            times = measure(engine, rounds)
            base = statistics.median(times["none"])
            print(f"podman run --rm, {runtime}, {rounds} interleaved rounds, medians:")
            for name, measured in times.items():
                middle, limit = statistics.median(measured), LIMITS.get(name)
                missed = limit is not None and middle - base > limit
                more = "" if name == "none" else f"  {(middle - base) * 1000:+6.0f} ms"
                bound = "" if limit is None else f"  (at most {limit * 1000:.0f}{', missed' if missed else ''})"
                print(f"  {name:16} {middle * 1000:6.0f} ms{more}{bound}", flush=True)
    finally:
        for process in containers.processes():
            if containers.lasting(process):
                kill(process.pid)
        lab.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
