"""Network namespaces that last as long as one process each, and sockets that are born in them.

A namespace is held by a ``cat`` whose input is a pipe of ours: should this process die in whatever way, the
pipe ends, the ``cat`` with it, and the kernel removes the namespace with every link in it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from typing import IO

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network and a mount namespace of one process; ``enter`` is the command line that leads into both."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
        self._answers("ready")  # only once `cat` runs have both namespaces been made

    def _answers(self, word: str) -> None:
        stdin, stdout = self._holder.stdin, self._holder.stdout
        assert stdin is not None and stdout is not None
        _write_line(stdin, word)
        if stdout.readline() != word.encode() + b"\n":
            raise RuntimeError("the lab's namespace could not be made; is this root?")

    @property
    def pid(self) -> int:
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount"]

    def run(self, *command: str, text: str | None = None) -> str:
        """Run one set-up command inside, as root; an error is an exception with what it said."""
        done = subprocess.run(
            [*self.enter, *command], input=text, capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def links(self) -> set[str]:
        """The names of the network links inside."""
        with open(f"/proc/{self.pid}/net/dev") as file:
            return {line.partition(":")[0].strip() for line in file.readlines()[2:]}

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to this namespace, though this process does not. A thread goes in to fetch
        it.
        """
        made: list[socket.socket | OSError] = []

        def fetch() -> None:
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    made.append(OSError(ctypes.get_errno(), "setns"))
                else:
                    made.append(socket.socket(family, kind, protocol))
            except OSError as error:
                made.append(error)
            finally:
                os.close(fd)

        thread = threading.Thread(target=fetch)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]

    def close(self) -> None:
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()
        self._holder.wait(timeout=10)


def _write_line(pipe: IO[bytes], word: str) -> None:
    pipe.write(word.encode() + b"\n")
    pipe.flush()
