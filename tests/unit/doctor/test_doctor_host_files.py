"""What hosts say about themselves, and what they must not be able to break."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.linux import host_files

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.2.0.0/16 2 0 1
        |-- 10.2.0.0
           /16 link UNICAST
        |-- 10.2.0.15
           /32 host LOCAL
        |-- 10.2.255.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
"""
GATEWAY = f"{struct.unpack('=I', bytes([198, 18, 0, 2]))[0]:08X}"  # as the kernel prints it on this machine
ROUTE = f"""\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	{GATEWAY}	0003	0	0	0	00000000	0	0	0
eth0	{GATEWAY}	00000000	0005	0	0	0	FFFFFFFF	0	0	0
"""
MOUNTS = """\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw,hidepid=2
31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw,mode=755
35 27 8:1 / /mnt/a\\040b rw - ext4 /dev/sda rw
"""


def write(root, path, text):
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def test_addresses(tmp_path):
    write(tmp_path, "proc/net/fib_trie", FIB_TRIE)
    write(
        tmp_path, "proc/net/if_inet6",
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fd000000000000000000000000000009 02 80 10 80     eth0\n",
    )  # fmt: skip
    assert host_files.own_addresses(str(tmp_path)) == ["10.2.0.15", "fd00:0000:0000:0000:0000:0000:0000:0009"]


def test_no_addresses(tmp_path):
    assert host_files.own_addresses(str(tmp_path)) == []


def test_default_gateway():
    assert host_files.parse_default_gateways(ROUTE) == [("eth0", "198.18.0.2")]


def test_mounts():
    proc, cgroup, other = host_files.parse_mounts(MOUNTS)
    assert (proc.point, proc.kind) == ("/proc", "proc")
    assert {"relatime", "hidepid=2"} <= proc.options
    assert (cgroup.kind, other.point) == ("tmpfs", "/mnt/a b")


def test_sysctls(tmp_path):
    write(tmp_path, "proc/sys/user/max_user_namespaces", "15000\n")
    write(tmp_path, "proc/sys/kernel/odd", "words\n")
    for interface, value in (("all", "0"), ("eth0", "1"), ("lo", "0")):
        write(tmp_path, f"proc/sys/net/ipv4/conf/{interface}/route_localnet", value)
    root = str(tmp_path)
    assert host_files.sysctl(root, "user/max_user_namespaces") == 15000
    assert host_files.sysctl(root, "kernel/odd") is None
    assert host_files.sysctl(root, "kernel/absent") is None
    assert host_files.per_interface(root, "route_localnet") == {"all": 0, "eth0": 1, "lo": 0}
    assert host_files.per_interface(root, "rp_filter") == {}
    with pytest.raises(FileNotFoundError):
        host_files.per_interface(root + "/absent", "rp_filter")


def test_status():
    fields = host_files.parse_status("Name:\tx: y\nCapEff:\t0000000000201000\nSeccomp:\t2\nnonsense\n")
    assert (fields["Name"], fields["Seccomp"]) == ("x: y", "2")
    assert host_files.has_capabilities(fields, 12, 21)
    assert not host_files.has_capabilities(fields, 12, 19)
    assert not host_files.has_capabilities({"CapEff": "?"}, 12)


def test_sub_id_lines():
    text = "root:1:2\ngraft:100000:65536\ngraft:x:1\n1000:5:6:7\n\ngraft\n"
    found = host_files.sub_id_lines(text, {"graft", "1000"})
    assert [(line.first, line.count) for line in found] == [(100000, 65536), (0, 0), (0, 0), (0, 0)]


def capability(revision, permitted, *more):
    words = [revision << 24 | 1, permitted, 0, 0, 0, *more]
    return struct.pack(f"<{len(words)}I", *words)


def test_file_capabilities():
    parse = host_files.parse_file_capability
    assert parse(capability(2, 1 << 7), 7) is True
    assert parse(capability(2, 1 << 6), 7) is False
    assert parse(capability(3, 1 << 7, 0), 7) is True
    assert parse(capability(3, 1 << 7, 100000), 7) is None  # of somebody else's user namespace
    assert parse(b"short", 7) is False


def test_set_uid_bit(tmp_path):
    program = tmp_path / "newuidmap"
    program.touch()
    program.chmod(0o4755)
    assert host_files.may_map_uids(str(program)) is (os.geteuid() == 0)  # set-uid of whom?
    program.chmod(0o755)
    assert host_files.may_map_gids(str(program)) is False
    with pytest.raises(FileNotFoundError):
        host_files.may_map_uids(str(tmp_path / "absent"))


def test_a_module_is_missing_only_when_that_is_sure(tmp_path):
    root = str(tmp_path)
    assert not host_files.module_missing(root, "nf_tables")  # nothing can be read
    write(tmp_path, "proc/modules", "veth 1 0 - Live 0x0\n")
    write(tmp_path, "proc/sys/kernel/osrelease", "6.1.0\n")
    assert not host_files.module_missing(root, "nf_tables")  # nothing says what is built in
    write(tmp_path, "lib/modules/6.1.0/modules.builtin", "kernel/net/packet/af_packet.ko\n")
    assert host_files.module_missing(root, "nf_tables")
    assert not host_files.module_missing(root, "veth")
    assert not host_files.module_missing(root, "af_packet")


def test_reading_stops_at_its_limit(tmp_path):
    write(tmp_path, "long", "x" * 5000)
    assert len(host_files.read(str(tmp_path), "/long", 100)) == 100


KNOWN = st.sampled_from((FIB_TRIE + ROUTE + MOUNTS).splitlines())
LINES = st.lists(st.one_of(st.text(max_size=40), KNOWN)).map("\n".join)


@given(LINES)
def test_any_text_can_be_parsed(text):
    for parse in (
        host_files.parse_mounts,
        host_files.parse_status,
        host_files.parse_fib_trie,
        host_files.parse_if_inet6,
        host_files.parse_default_gateways,
        host_files.whole_user_namespace,
    ):
        parse(text)
    for line in host_files.sub_id_lines(text, {"a", ""}):
        assert line.count >= 0
    host_files.has_capabilities({"CapEff": text}, 1)


@given(st.binary(max_size=40), st.integers(0, 31))
def test_any_file_capability_can_be_parsed(data, number):
    assert host_files.parse_file_capability(data, number) in (True, False, None)
