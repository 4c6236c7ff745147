"""The host's /etc/hosts: names that are answered before any resolver is asked, as libc's ``files`` does
it."""

from __future__ import annotations

import ipaddress

from .followed import FollowedFile


class HostsFile:
    """The names of one hosts file, re-read when it changes."""

    def __init__(self, path: str = "/etc/hosts") -> None:
        self._file = FollowedFile(path)
        self._addresses: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}

    def addresses_of(self, name: str) -> list[str] | None:
        """All addresses of ``name`` (lower case), of both families, in the file's order; None: not in the
        file."""
        self._refresh()
        return self._addresses.get(name)

    def name_of(self, address: str) -> str | None:
        """The canonical name (the first on its line) of ``address`` in its shortest text form."""
        self._refresh()
        return self._names.get(address)

    def _refresh(self) -> None:
        text = self._file.changed_text()
        if text is not None:
            self._addresses, self._names = parse_hosts(text)


def parse_hosts(text: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(name -> addresses, address -> canonical name). Unreadable lines are skipped, as libc does.

    So are addresses with a scope ("fe80::1%eth0"): a DNS record has no room for it.
    """
    addresses: dict[str, list[str]] = {}
    canonical: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if len(fields) < 2 or "%" in fields[0]:
            continue
        try:
            address = str(ipaddress.ip_address(fields[0]))
        except ValueError:
            continue
        names = [field.lower().removesuffix(".") for field in fields[1:]]
        canonical.setdefault(address, names[0])
        for name in names:
            known = addresses.setdefault(name, [])
            if address not in known:
                known.append(address)
    return addresses, canonical
