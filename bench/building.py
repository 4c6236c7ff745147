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
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct item {{ int key; char name[16]; struct item *next; }};
struct table {{ size_t size, used; struct item *slot[64]; }};

static unsigned hash_{0}(const char *text) {{
    unsigned value = {0}u;
    while (*text) value = value * 33 + (unsigned) tolower((unsigned char) *text++);
    return value;
}}

static struct item *find_{0}(const struct table *table, const char *name) {{
    struct item *at = table->slot[hash_{0}(name) % 64];
    while (at && strcmp(at->name, name)) at = at->next;
    return at;
}}

static int add_{0}(struct table *table, int key) {{
    char name[16];
    snprintf(name, sizeof name, "item %d", key);
    if (find_{0}(table, name)) return -EEXIST;
    struct item *made = calloc(1, sizeof *made);
    if (!made) return -ENOMEM;
    struct item **slot = &table->slot[hash_{0}(name) % 64];
    made->key = key;
    memcpy(made->name, name, sizeof name);
    made->next = *slot;
    *slot = made;
    table->used++;
    return 0;
}}

static int compare_{0}(const void *one, const void *other) {{
    int a = (*(struct item *const *) one)->key, b = (*(struct item *const *) other)->key;
    return (a > b) - (a < b);
}}

int print_{0}(const struct table *table, FILE *file) {{
    struct item **all = malloc(table->used * sizeof *all);
    size_t count = 0;
    if (!all) return -ENOMEM;
    for (size_t slot = 0; slot < 64; slot++)
        for (struct item *at = table->slot[slot]; at; at = at->next) all[count++] = at;
    qsort(all, count, sizeof *all, compare_{0});
    for (size_t at = 0; at < count; at++) fprintf(file, "%5d %-16s\\n", all[at]->key, all[at]->name);
    free(all);
    return 0;
}}

int sum_{0}(int count) {{
    struct table table = {{0}};
    int total = 0;
    for (int i = 0; i < count; i++) if (add_{0}(&table, i ^ {0})) return -1;
    for (int slot = 0; slot < 64; slot++)
        for (struct item *at = table.slot[slot], *next; at; at = next) {{
            next = at->next;
            total += at->key + (int) strlen(at->name);
            free(at);
        }}
    return total;
}}
"""


def write_sources(place: Path, files: int) -> None:
    objects = []
    for number in range(files):
        (place / f"part{number}.c").write_text(_SOURCE.format(number))
        objects.append(f"part{number}.o")
    (place / "Makefile").write_text(
        f"all: {' '.join(objects)}\n%.o: %.c\n\t$(CC) -c -O2 -g -o $@ $<\nclean:\n\trm -f *.o\n"
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
