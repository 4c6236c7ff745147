"""Files that only the command sees, and the kernel's word on whose an address is."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from ground.child import fork, in_own_namespaces, wait
from ground.network import Network, add_route, configure, ready, veth

from netns_graft.linux import syscalls
from netns_graft.linux.routes import HostAddresses

FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC


@in_own_namespaces
def test_a_file_of_a_tmpfs_bound_over_another(tmp_path: Path) -> None:
    """In a user namespace, as an ordinary user. Falls: the graft cannot have a resolv.conf of its own.

    The tmpfs is mounted over /proc for a moment, and lives on through the bound file when it has gone from there.
    """
    target = tmp_path / "resolv.conf"
    target.write_text("the host's\n")

    def command() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.mount("test", "/proc", "tmpfs", FLAGS, "size=64k,mode=0755")
        with open("/proc/file", "w") as file:
            file.write("the graft's\n")
        syscalls.mount("/proc/file", str(target), "", syscalls.MS_BIND)
        syscalls.mount("none", str(target), "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | FLAGS)
        syscalls.umount("/proc", syscalls.MNT_DETACH)
        assert os.path.exists("/proc/self/stat")
        assert target.read_text() == "the graft's\n"
        with pytest.raises(OSError) as refused:
            target.write_text("x")
        assert refused.value.errno == errno.EROFS
        with pytest.raises(OSError) as busy:
            target.unlink()
        assert busy.value.errno == errno.EBUSY

    assert wait(fork(command)) == 0
    assert target.read_text() == "the host's\n"  # outside nothing has changed


@in_own_namespaces
def test_the_routing_table_knows_whose_an_address_is() -> None:
    """RTM_GETROUTE. Falls: "the host's own addresses" would be a list that grows stale."""
    owned = ["127.0.0.1", "127.99.0.1", "192.0.2.10", "192.0.2.255", "255.255.255.255", "224.0.0.1", "198.51.100.9",
             "::1", "2001:db8:1::10", "0.0.0.0"]  # fmt: skip
    foreign = ["192.0.2.11", "93.184.216.34", "203.0.113.1", "2001:db8:1::11", "2606:2800::1"]
    with Network() as other:
        veth("lan", "end", other)
        with other.inside():
            configure("end")
        configure("lan", "192.0.2.10/24", "2001:db8:1::10/64")
        ready((None, "lan"), (other, "end"))
        add_route("default", gateway="192.0.2.1")
        add_route("198.51.100.0/24", type="local", oif=1, table=255, scope=254)  # AnyIP
        add_route("203.0.113.0/24", type="unreachable")
        host = HostAddresses()
        verdicts = {text: host.owns(_packed(text)) for text in owned + foreign}  # while the cable is there
        host.close()
    assert verdicts == dict.fromkeys(owned, True) | dict.fromkeys(foreign, False)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
