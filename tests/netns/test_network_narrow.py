"""A 32-bit program on x86-64: narrower structures, and one call for all that a C library may use (socketcall)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ground.carried import Carried
from ground.child import in_own_namespaces
from ground.echo import served
from ground.network import WEB

# No C library: there may be none for 32 bits. Ends with the number of the first step that was not as it should be.
PROGRAM = r"""
typedef unsigned int u32; typedef unsigned short u16;
static int sys(int n, u32 a, u32 b, u32 c, u32 d, u32 e, u32 f) {
    int r; u32 args[2] = { f, (u32)n };
    asm volatile("push %%ebp; mov (%%eax), %%ebp; mov 4(%%eax), %%eax; int $0x80; pop %%ebp"
        : "=a"(r) : "a"(args), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return r;
}
struct name { u16 family, port; u32 host; u32 zero[2]; };
struct vector { void *base; u32 size; };
struct header {
    void *name; u32 name_length; struct vector *vectors; u32 count; void *control; u32 control_length, flags;
};
struct message { struct header header; u32 length; };
#define P(x) ((u32)(x))
#define CHECK(number, what) do { if (!(what)) sys(1, number, 0, 0, 0, 0, 0); } while (0)
static int same(struct name *a, struct name *b) {
    return a->family == b->family && a->port == b->port && a->host == b->host;
}
void _start(void) {
    struct name dns = { 2, 0x3500, HOST, { 0, 0 } }, web = { 2, 0x5000, HOST, { 0, 0 } }, seen = { 0 };
    char one[4] = "one", two[4] = "two", in1[32], in2[32]; u32 length = sizeof seen;
    struct vector parts[2] = { { one, 2 }, { two, 3 } }, room = { in1, 32 }, room2 = { in2, 32 };
    struct header out = { &dns, 16, parts, 2, 0, 0, 0 }, in = { &seen, 16, &room, 1, 0, 0, 0 };
    int fd = sys(359, 2, 2, 0, 0, 0, 0);
    CHECK(1, sys(370, fd, P(&out), 0, 0, 0, 0) == 5);                       /* sendmsg */
    CHECK(2, sys(372, fd, P(&in), 0, 0, 0, 0) == 9 && same(&seen, &dns));   /* recvmsg: "re: ontwo" */
    CHECK(3, in1[4] == 'o' && in1[6] == 't' && in.name_length == 16);
    struct name seen2 = { 0 }; seen.port = 0;
    struct message outs[2] = { { { &dns, 16, parts, 1, 0, 0, 0 }, 0 }, { { &dns, 16, parts + 1, 1, 0, 0, 0 }, 0 } };
    struct message ins[2] = { { { &seen, 16, &room, 1, 0, 0, 0 }, 0 }, { { &seen2, 16, &room2, 1, 0, 0, 0 }, 0 } };
    CHECK(4, sys(345, fd, P(outs), 2, 0, 0, 0) == 2 && outs[0].length == 2 && outs[1].length == 3);
    CHECK(5, sys(337, fd, P(ins), 2, 0, 0, 0) == 2 && ins[0].length == 6 && ins[1].length == 7);
    CHECK(6, same(&seen, &dns) && same(&seen2, &dns));
    seen.port = 0;
    u32 asks[6] = { fd, P(one), 3, 0, P(&dns), 16 }, hears[6] = { fd, P(in1), 32, 0, P(&seen), P(&length) };
    CHECK(7, sys(102, 11, P(asks), 0, 0, 0, 0) == 3);                       /* socketcall: sendto, recvfrom */
    CHECK(8, sys(102, 12, P(hears), 0, 0, 0, 0) == 7 && same(&seen, &dns) && length == 16);
    fd = sys(359, 2, 1, 0, 0, 0, 0);
    u32 joins[3] = { fd, P(&web), 16 }, asks_peer[3] = { fd, P(&seen), P(&length) };
    seen.port = 0;
    CHECK(9, sys(102, 3, P(joins), 0, 0, 0, 0) == 0);                       /* connect, getpeername */
    CHECK(10, sys(102, 7, P(asks_peer), 0, 0, 0, 0) == 0 && same(&seen, &web));
    CHECK(11, sys(3, fd, P(in1), 1, 0, 0, 0) == 1);                         /* read */
    fd = sys(359, 2, 1, 0, 0, 0, 0);
    web.port = 0x5100;
    CHECK(12, sys(362, fd, P(&web), 16, 0, 0, 0) == -111);                  /* connect: ECONNREFUSED */
    sys(1, 0, 0, 0, 0, 0, 0);
}
"""


@in_own_namespaces
def test_a_32_bit_program(tmp_path: Path) -> None:
    host = int.from_bytes(bytes(map(int, WEB.split("."))), "little")
    (tmp_path / "narrow.c").write_text(PROGRAM)
    program = tmp_path / "narrow"
    subprocess.run(
        ["gcc", "-m32", "-static", "-nostdlib", "-fno-stack-protector", "-fno-pie", "-no-pie", "-O1", "-w",
         f"-DHOST={host}u", "-o", program, tmp_path / "narrow.c"],
        check=True,
    )  # fmt: skip
    with served():
        seen = Carried([str(program)]).finish()
    assert [payload for _, _, _, payload in seen.questions] == [b"ontwo", b"on", b"two", b"one"]
    assert [target for _, _, target in seen.connects] == [(WEB, 80), (WEB, 81)]
