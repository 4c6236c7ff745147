"""podman's command line, read just far enough to find what is at odds with a graft.

What is passed on goes to podman word for word, so only its *options* matter, up to the image (``run``) or anywhere
(``build``), and to tell an option from another's value one must know which options take one. The table is kept here
and not taken from ``podman run --help``, which costs a podman start (50 ms) on every run and leaves out the options
that podman hides, its own aliases and its global ones. It lists those *without* a value, a short list that hardly
grows: what it does not know is taken to have one.

Being wrong is harmless: podman itself refuses a second ``--network``, and the hook refuses a namespace that is not
empty. What is found here is only told sooner, and in words that say why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from netns_graft.errors import UsageError

_GLOBAL_SWITCHES = {"help", "noout", "remote", "syslog", "trace", "transient-store", "version"}


@dataclass(slots=True, frozen=True)
class Verb:
    """One of podman's commands. ``switches``: its options without a value; those of one letter stand alone."""

    name: str
    switches: frozenset[str]
    interspersed: bool  # options may follow the first word that is none


RUN = Verb(
    "run",
    frozenset(
        _GLOBAL_SWITCHES
        | {
            "detach", "disable-content-trust", "env-host", "http-proxy", "init", "interactive", "no-healthcheck",
            "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged", "publish-all", "quiet",
            "read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs", "sig-proxy", "tls-verify", "tty",
            "unsetenv-all", "d", "i", "P", "q", "t",
        }
    ),
    interspersed=False,
)  # fmt: skip

BUILD = Verb(
    "build",
    frozenset(
        _GLOBAL_SWITCHES
        | {
            "all-platforms", "compat-volumes", "compress", "created-annotation", "disable-compression",
            "disable-content-trust", "force-rm", "http-proxy", "identity-label", "inherit-annotations",
            "inherit-labels", "layers", "logsplit", "no-cache", "no-hostname", "no-hosts", "omit-history", "pull",
            "pull-always", "pull-never", "quiet", "rewrite-timestamp", "rm", "save-stages", "skip-unused-stages",
            "squash", "squash-all", "stdin", "tls-verify", "D", "h", "q",
        }
    ),
    interspersed=True,
)  # fmt: skip

_LONG = {"p": "publish", "P": "publish-all", "d": "detach", "net": "network", "b": "bundle"}


@dataclass(slots=True, frozen=True)
class Option:
    """One of podman's options as it was given; ``name`` without dashes, in its long form where it matters here.

    ``value`` None: it has none, or what should be its value is missing.
    """

    name: str
    value: str | None

    @property
    def is_on(self) -> bool:
        """For a switch: ``--detach``, ``--detach=true``; any spelling that podman takes for true."""
        return self.value is None or self.value.lower() in ("1", "t", "true")


def read_options(words: Sequence[str], verb: Verb) -> tuple[list[Option], list[str]]:
    """(the options, the words from the first that is none). For ``build`` the second list has no options in it."""
    options: list[Option] = []
    rest: list[str] = []
    for start, end, found in _read(words, verb):
        if found:
            options += found
        else:
            rest += words[start + (words[start] == "--" and end == len(words)) : end]
    return options, rest


def without(words: Sequence[str], verb: Verb, names: Collection[str]) -> list[str]:
    """``words`` without the options of these (long) names and their values."""
    left: list[str] = []
    for start, end, found in _read(words, verb):
        if not any(option.name in names for option in found):
            left += words[start:end]
    return left


def _read(words: Sequence[str], verb: Verb) -> Iterator[tuple[int, int, list[Option]]]:
    """What stands from one index up to another: options, or none where it is something else."""
    at = 0
    while at < len(words):
        word, start = words[at], at
        at += 1
        if word == "--" or ((not word.startswith("-") or word == "-") and not verb.interspersed):
            yield start, len(words), []
            return
        if not word.startswith("-") or word == "-":
            yield start, at, []
            continue
        found, lacks_value = _long(word[2:], verb) if word.startswith("--") else _cluster(word[1:], verb)
        if lacks_value and at < len(words):
            found[-1] = Option(found[-1].name, words[at])
            at += 1
        yield start, at, found


def _long(text: str, verb: Verb) -> tuple[list[Option], bool]:
    name, equals, value = text.partition("=")
    option = Option(_LONG.get(name, name), value if equals else None)
    return [option], not equals and name not in verb.switches


def _cluster(letters: str, verb: Verb) -> tuple[list[Option], bool]:
    """``-it``, ``-itp 80:80``, ``-p80:80``, ``-p=80:80``."""
    found: list[Option] = []
    for index, letter in enumerate(letters):
        name = _LONG.get(letter, letter)
        rest = letters[index + 1 :]
        if letter in verb.switches:
            if rest.startswith("="):
                return [*found, Option(name, rest[1:])], False
            found.append(Option(name, None))
        elif rest:
            return [*found, Option(name, rest.removeprefix("="))], False
        else:
            return [*found, Option(name, None)], True
    return found, False


def refuse_conflicts(options: Iterable[Option], verb: Verb, environ: Mapping[str, str]) -> None:
    """``UsageError`` for what would lead around the graft, or cannot work in one."""
    options = list(options)
    for option in options:
        if option.name == "network" and option.value not in (None, "none"):
            raise UsageError(
                f"--network {option.value} is at odds with a graft, which is the container's only network",
                hint=f"leave it out: netns-graft {verb.name} sees to the network",
            )
        if verb is RUN and (option.name == "publish" or (option.name == "publish-all" and option.is_on)):
            raise UsageError(
                f"--{option.name}: a grafted container cannot publish ports yet",
                hint="run it with podman alone if it must be reached from outside",
            )
        if option.name == "isolation" and option.value == "chroot":
            raise UsageError("--isolation chroot runs no hooks: nothing would be grafted", hint="leave it out")
    if verb is BUILD and environ.get("BUILDAH_ISOLATION") == "chroot" and not has(options, "isolation"):
        raise UsageError(
            "BUILDAH_ISOLATION=chroot runs no hooks: nothing would be grafted", hint="unset BUILDAH_ISOLATION"
        )


def has(options: Iterable[Option], name: str) -> bool:
    return any(option.name == name for option in options)


def last(options: Iterable[Option], name: str) -> Option | None:
    """The one that podman goes by when it is given several times."""
    found = None
    for option in options:
        if option.name == name:
            found = option
    return found
