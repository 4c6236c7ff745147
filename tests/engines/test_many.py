"""Many containers: at once, and one after the other. None without its graft, nothing piles up."""

import os
import subprocess

from lab import addresses as at
from lab.containers import IMAGE, Engine, brokers, forwarders, processes
from lab.internet import eventually
from lab.matrix import one, user_and_root
from lab.server_files import PAGE

AT_ONCE, IN_A_ROW = 20, 200


@user_and_root
def test_at_once(engine: Engine) -> None:
    """Twenty starts at the same moment, with no broker there yet: each container has its own graft and policy."""
    for broker in brokers():
        os.kill(broker.pid, 9)
        assert eventually(lambda broker=broker: broker not in processes())
    running = []
    for number in range(AT_ONCE):
        rules = {"default": "deny", "allow": f"{at.WEB}:80" if number % 2 else f"{at.OTHER}:80"}
        argv = engine.run_argv("--rm", IMAGE, "wget", "-qO-", f"http://{at.WEB}/", annotations=rules)
        running.append(subprocess.Popen(
            engine.host.argv(argv), env=engine.host.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    ended = [process.communicate(timeout=100) for process in running]
    for number, (out, err) in enumerate(ended):
        assert out == (PAGE if number % 2 else b""), (number, err)
        assert running[number].returncode == (0 if number % 2 else 1), (number, err)
    assert len(brokers()) == 1
    assert eventually(lambda: forwarders() == [])


@one
def test_one_after_the_other(engine: Engine) -> None:
    """Two hundred in a row: the broker has as many descriptors and children, and about as much memory, as before."""
    command = engine.run_argv("--rm", IMAGE, "true")
    first = engine.run(*command)
    assert first.ok() == ""
    broker = engine.broker()
    assert eventually(lambda: forwarders() == [])
    before = _holdings(broker.pid)
    words = " ".join(f"'{word}'" for word in command)
    loop = f"n=0; while [ $n -lt {IN_A_ROW} ]; do {words} || exit 1; n=$((n+1)); done"
    assert engine.run("sh", "-c", loop, timeout=115).ok() == ""
    assert engine.broker() == broker
    assert eventually(lambda: forwarders() == [])
    assert eventually(lambda: _holdings(broker.pid)[0] == before[0])
    assert _holdings(broker.pid)[1] < before[1] * 1.2
    assert engine.workloads() == []


def _holdings(pid: int) -> tuple[int, int]:
    """(open descriptors, resident memory in KiB); the one of a spare forwarder comes and goes."""
    with open(f"/proc/{pid}/status") as file:
        resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    kinds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return len([kind for kind in kinds if not kind.startswith("socket:")]), resident
