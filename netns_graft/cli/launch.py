"""What ``run`` and ``build`` share: a directory for one launch, the hook in it, the record, and the ending.

The hook's settings are its own arguments, in the order in which they were given. ``run`` repeats them as annotations
where annotations can hold them, so that ``podman inspect`` shows them and an installed hook finds them when podman
restarts the container; this launch's hook does not read them.

No password goes into a settings file, an annotation or another process's arguments: those in URLs and in the
environment go into a file of this launch, which is gone when the engine has returned.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from netns_graft.engines import launch as engine
from netns_graft.engines.hook_files import INTERPRETER, Hook, packaged_hook
from netns_graft.errors import ConfigError, GraftError, UsageError
from netns_graft.flow import Flow
from netns_graft.journal import Tally
from netns_graft.lines import say
from netns_graft.linux import places
from netns_graft.options import GraftOptions
from netns_graft.records import Reader, flow_on

_DENIED = 78  # EX_CONFIG: --fail-on-deny, and something was
_LOGIN = ("NETNS_GRAFT_PROXY_USERNAME", "NETNS_GRAFT_PROXY_PASSWORD")
_NEVER_RAN = (125, 126, 127, 255)  # podman's own, and crun's: an empty table would say nothing
_REFUSAL = ": netns-graft: error: "
_STDERR = 2


@dataclass(slots=True)
class Launch:
    """One run of an engine. ``directory`` is its own and goes away with it."""

    name: str
    runtime: str
    directory: str
    options: GraftOptions
    settings: list[tuple[str, str]] = field(default_factory=list, repr=False)
    record: Record | None = None

    def tell_refusal(self) -> None:
        """What a hook wrote into the log meanwhile: crun keeps its words to itself."""
        try:
            with open(log_file(), encoding="utf-8", errors="replace") as file:
                mine = f" {self.name}{_REFUSAL}"
                refusals = [line.partition(mine)[2].strip() for line in file if mine in line]
        except OSError:
            return
        for refusal in refusals[-1:]:
            say("error", refusal)

    def hook(self, *, group: str | None = None) -> Hook:
        if not os.access(INTERPRETER, os.X_OK):
            # podman passes over a hook whose program is not there, without a word.
            raise GraftError(f"the hook's interpreter {INTERPRETER} is missing", hint="install python3")
        return Hook(
            file=packaged_hook(), python=sys.executable, runtime_dir=self.runtime, log=log_file(), group=group,
            annotations=False, awaited=self.record is not None, launch=self.name, settings=self.settings,
        )  # fmt: skip

    def hooks_dir(self, *, group: str | None = None) -> str:
        """A hooks directory for this launch alone, for every container of it."""
        path = f"{self.directory}/hooks.d"
        os.mkdir(path, 0o700)
        self.hook(group=group).write(path, always=True)
        return path

    @property
    def wants_summary(self) -> bool:
        wanted = self.options.summary
        return sys.stderr.isatty() if wanted is None else wanted

    @property
    def wants_record(self) -> bool:
        return self.wants_summary or self.options.fail_on_deny or self.options.flows == "-"


@contextmanager
def launch(
    kind: str, options: GraftOptions, environ: Mapping[str, str], *, stays: bool = True, records: bool = False
) -> Iterator[Launch]:
    """A launch with its settings. ``stays``: we are there until the end, and can tell of it. ``records``: whatever
    is asked for, its flows are needed. ``GraftError``.
    """
    name = f"{kind}-{os.urandom(4).hex()}"
    try:
        runtime = places.runtime_dir(environ)
        directory = places.private_directory(f"{places.private_directory(f'{runtime}/launches')}/{name}")
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None
    this = Launch(name, runtime, directory, options)
    try:
        this.settings = [*_upstreams(this, environ), *_policy(options)]
        flows = _flows_file(options.flows)
        if stays and (records or this.wants_record):
            this.record = Record.of(flows, directory)
            flows = this.record.path
        elif flows == "-":
            raise UsageError("--flows -: nobody is left to write to stderr", hint="give --flows a file")
        if flows is not None:
            this.settings.append(("flows", flows))
        yield this
    finally:
        if this.record is not None:
            this.record.close()
        shutil.rmtree(directory, ignore_errors=True)


def find_engine(name: str, environ: Mapping[str, str]) -> str:
    path = shutil.which(name, path=environ.get("PATH"))
    if path is None:
        raise GraftError(f"{name} is not installed", hint=f"install {name}, or give its directory in PATH")
    return path


def to_the_end(
    path: str, command: list[str], environ: Mapping[str, str], this: Launch, take: Callable[[Flow], None],
    is_enough: Callable[[], bool] | None = None,
) -> int:  # fmt: skip
    """Run the engine: its status. ``take`` gets the flows that must be told on while it runs. It is interrupted once
    ``is_enough``.
    """
    clean = {name: value for name, value in environ.items() if name not in _LOGIN}
    record = this.record
    tells = record is not None and record.is_told

    def meanwhile() -> bool:
        if record is not None and tells:
            record.read(take)
        return is_enough is not None and is_enough()

    return engine.run(path, command, clean, meanwhile=meanwhile if tells or is_enough is not None else None)


def ending(this: Launch, status: int, tally: Tally) -> int:
    """The summary if there is to be one; the status."""
    never_ran = status in _NEVER_RAN and not tally.groups
    if never_ran:
        this.tell_refusal()
    if this.record is not None and this.wants_summary and not never_ran:
        from netns_graft.cli.summary import print_summary

        print_summary(tally, sys.stderr)
    return status_with_denials(this.options, status, tally.denied)


def status_with_denials(options: GraftOptions, status: int, denied: int) -> int:
    return _DENIED if options.fail_on_deny and denied and status == 0 else status


def log_file() -> str:
    """Where hooks and brokers say what went wrong; crun keeps hooks' words to itself."""
    try:
        return f"{places.state_dir()}/hook.log"
    except OSError as error:
        raise GraftError(f"cannot use {error.filename}: {error.strerror}") from None


def _policy(options: GraftOptions) -> Iterator[tuple[str, str]]:
    yield "default", options.default
    yield from options.rules
    for name, told in (("dns", options.dns), ("dns-server", options.dns_server)):
        if told is not None:
            yield name, told
    if options.accept_first:
        yield "accept-first", "true"
    if options.attribution != "auto":
        yield "attribution", options.attribution


def _upstreams(this: Launch, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    options = this.options
    path = os.path.abspath(options.proxy_credentials) if options.proxy_credentials is not None else None
    proxies = options.proxies
    if proxies and (any("@" in url for url in proxies) or any(environ.get(name) for name in _LOGIN)):
        proxies, text = _without_logins(options, environ)
        path = f"{this.directory}/credentials"
        _write_private(path, text)
    for url in proxies:
        yield "proxy", url
    if path is not None:
        yield "proxy-credentials", path
    if options.select_proxy_mode is not None:
        yield "select-proxy-mode", options.select_proxy_mode
    for name, file in (("direct-file", options.direct_file), ("proxy-file", options.proxy_file)):
        if file is not None:
            yield name, os.path.abspath(file)


def _without_logins(options: GraftOptions, environ: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """The chains without users and passwords, and the text of a credentials file that has them."""
    from netns_graft.dialling.credentials import Credentials
    from netns_graft.dialling.place import host_port
    from netns_graft.dialling.url import DIRECT, parse_chain, unusable

    known = Credentials.from_environment(environ)
    if options.proxy_credentials is not None:
        known = known.or_else(Credentials.from_file(options.proxy_credentials))
    chains, logins = [], dict[str, str]()
    for value in options.proxies:
        hops = parse_chain(value, known)
        for hop in hops:
            if hop.login is None:
                continue
            user, password = hop.login.username or "", hop.login.password or ""
            login = f"{user}:{password}"
            if ":" in user or "\n" in login or "\r" in login:
                raise unusable("a user with a colon, or a line end in a login, cannot be handed to a container", value)
            if logins.setdefault(host_port(hop.host, hop.port), login) != login:
                raise unusable("two logins for the same proxy cannot be handed to a container", value)
        chains.append(",".join(hop.label for hop in hops) or DIRECT)
    return tuple(chains), "".join(f"{place} {login}\n" for place, login in logins.items())


def _write_private(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def _flows_file(given: str | None) -> str | None:
    """Absolute, for the forwarder's directory is another; and one that can be written to, told now."""
    if given in (None, "-"):
        return given
    path = os.path.abspath(given or "")
    try:
        # Not blocking: a named pipe may have no reader yet.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        if not os.path.exists(path):
            raise ConfigError(f"cannot write to {given!r}: {error.strerror}", where="--flows") from None
    return path


@dataclass(slots=True)
class Record:
    """The flow records of one launch, as the forwarder writes them to ``path``: read along, and told on if need be.

    The user's own file is read if it can be; a pipe or a terminal cannot, so those get their lines from us, and so
    does stderr.
    """

    path: str
    _reader: Reader
    _sink_fd: int | None = None

    @classmethod
    def of(cls, flows: str | None, directory: str) -> Record:
        if flows not in (None, "-"):
            found = os.stat(flows or "")
            if stat.S_ISREG(found.st_mode):
                return cls(flows or "", Reader(flows or "", found.st_size))
        path = f"{directory}/flows.jsonl"
        _write_private(path, "")
        if flows is None:
            return cls(path, Reader(path))
        sink_fd = _STDERR if flows == "-" else os.open(flows, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return cls(path, Reader(path), sink_fd)

    @property
    def is_told(self) -> bool:
        """Whether lines must be handed on while the engine runs."""
        return self._sink_fd is not None

    def read(self, take: Callable[[Flow], None]) -> None:
        """Everything that is new. Of a file that others write to as well, theirs too."""
        for line in self._reader.lines():
            if self._sink_fd is not None:
                try:
                    os.write(self._sink_fd, line)
                except OSError as error:
                    say("warning", f"--flows: {error.strerror}; flows are missing")
                    self._sink_fd = None
            flow = flow_on(line)
            if flow is not None:
                take(flow)

    def close(self) -> None:
        self._reader.close()
        if self._sink_fd not in (None, _STDERR):
            os.close(self._sink_fd or 0)
