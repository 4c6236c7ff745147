"""What mode ptrace costs a build that opens no connection: a few hundred small C files, each with processes of its own.

Every process is seized, followed over its exec and buried by the tracer, and none of its other system calls stops.
Traced and untraced builds take turns, and their order changes, so that whatever else the machine does hits both alike.
Exits 1 when the median of the ratios is over the limit.

Usage: building.py [--files N] [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.05  # times as long as untraced
_SOURCE = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct item {{ int key; char name[16]; struct item *next; }};

static struct item *add_{0}(struct item *first, int key) {{
    struct item *made = malloc(sizeof *made);
    made->key = key;
    snprintf(made->name, sizeof made->name, "item %d", key);
    made->next = first;
    return made;
}}

int sum_{0}(int count) {{
    struct item *first = NULL;
    int total = 0;
    for (int i = 0; i < count; i++) first = add_{0}(first, i ^ {0});
    for (struct item *at = first; at; at = at->next) total += at->key + (int) strlen(at->name);
    return total;
}}
"""


def write_sources(place: Path, files: int) -> None:
    objects = []
    for number in range(files):
        (place / f"part{number}.c").write_text(_SOURCE.format(number))
        objects.append(f"part{number}.o")
    (place / "Makefile").write_text(
        f"all: {' '.join(objects)}\n%.o: %.c\n\t$(CC) -c -O1 -o $@ $<\nclean:\n\trm -f *.o\n"
    )


def seconds(place: Path, wrap: list[str]) -> float:
    """One whole build, from the start of its first process to the end of its last."""
    subprocess.run(["make", "-s", "-C", str(place), "clean"], check=True)
    began = time.monotonic()
    subprocess.run([*wrap, "make", "-s", "-C", str(place), f"-j{os.cpu_count()}"], check=True)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    traced = [str(Path(sys.executable).parent / "netns-graft"), "exec", "--no-summary", "--mode", "ptrace", "--"]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        write_sources(place, given.files)
        seconds(place, [])  # the caches are warm for both
        ratios = []
        for number in range(given.rounds):
            if number % 2:
                with_us = seconds(place, traced)
                without = seconds(place, [])
            else:
                without = seconds(place, [])
                with_us = seconds(place, traced)
            ratios.append(with_us / without)
            print(f"untraced {without:6.2f} s   --mode ptrace {with_us:6.2f} s   ratio {ratios[-1]:.3f}", flush=True)
    median = statistics.median(ratios)
    kept = median <= LIMIT
    print(f"{given.files} C files, median ratio {median:.3f} (at most {LIMIT}: {'yes' if kept else 'NO'})")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
