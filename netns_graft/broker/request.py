"""The hook's one line, checked: which container, by what options. Pure.

Nothing here is guessed. A line that says anything that we do not know is refused, for it may be what the policy hangs
on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from netns_graft.dns.resolv_conf import is_near
from netns_graft.errors import ConfigError, GraftError
from netns_graft.options import FILES, REPEATABLE, GraftOptions, named_options

ANNOTATION = "io.netns-graft."
LINE_LIMIT = 4 << 20  # bytes; a state carries the container's annotations
STAGES = ("createRuntime", "poststop")
_KEYS = frozenset({"stage", "state", "options", "group", "annotations"})
# For containers alone: who runs a command can end it himself, and has the host's resolvers.
_ENDING, _NAMESERVER = "end-on-deny", "nameserver"
_CONTAINERS = frozenset({_ENDING, _NAMESERVER})
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(slots=True, frozen=True)
class HookRequest:
    """``pid`` is 0 where the state has none. ``annotations`` are ours, by their names without the prefix."""

    stage: str
    container_id: str
    pid: int
    bundle: str
    annotations: dict[str, str]
    state_annotations: dict[str, str]
    settings: tuple[tuple[str, str], ...]
    group: str | None

    @property
    def short_id(self) -> str:
        return short_id(self.container_id)

    @property
    def names_options(self) -> bool:
        """Whether anything about this container was asked for by an annotation of its own."""
        return bool(self.annotations)

    @property
    def ends_on_deny(self) -> bool:
        """Whether the first denied flow is the end of it. ConfigError."""
        said = {value for name, value in (*self.settings, *self.annotations.items()) if name == _ENDING}
        if said - {"true", "false"}:
            raise ConfigError(f"{said.pop()!r} is neither true nor false", where=_ENDING)
        return "true" in said

    @property
    def nameservers(self) -> tuple[str, ...]:
        """Addresses of the resolvers to ask rather than the host's; a setting goes before annotations. ConfigError."""
        said = [value for name, value in self.settings if name == _NAMESERVER]
        said = said or self.annotations.get(_NAMESERVER, "").split()
        for address in said:
            try:
                near = is_near(address)
            except ValueError:
                raise ConfigError(f"{address!r} is not an IP address", where=_NAMESERVER) from None
            if near:
                raise ConfigError(f"{address!r} is the container's own", where=_NAMESERVER)
        return tuple(said)

    def options(self) -> GraftOptions:
        """ConfigError for what cannot be used. The hook's own settings come first and cannot be changed by an
        annotation. An annotation holds several values separated by spaces or newlines; a map of annotations has no
        order, so its denials go before its permissions.
        """
        given = [setting for setting in self.settings if setting[0] not in _CONTAINERS]
        fixed = {name for name, _ in given}
        for name in sorted(self.annotations.keys() - _CONTAINERS, key=lambda name: (name != "deny", name)):
            value = self.annotations[name].strip()
            if name in REPEATABLE:
                given += [(name, word) for word in value.split()]
            elif name not in fixed:
                given.append((name, value))
            elif (name, value) not in self.settings:
                raise ConfigError("the hook's own setting cannot be changed", where=f"{ANNOTATION}{name}")
        options = named_options(given)
        for name in sorted(FILES):
            path = getattr(options, name.replace("-", "_"))
            if path is not None and not os.path.isabs(path):
                raise ConfigError(f"{path!r} is no absolute path", where=name)
        return options


def short_id(container_id: str) -> str:
    """An engine's 64 digits are cut to twelve, as engines show them. Anything else is kept, made fit for a file."""
    if re.fullmatch(r"[0-9a-f]{64}", container_id):
        return container_id[:12]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", container_id)[:64].lstrip(".") or "_"


def parse_request(line: bytes) -> HookRequest:
    """GraftError with the reason for a refusal."""
    try:
        whole = json.loads(line, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise GraftError(f"the state cannot be read: {error}") from None
    if not isinstance(whole, dict) or set(whole) - _KEYS:
        raise GraftError("the question has a form that this version does not know", hint="netns-graft hook install")
    stage, state = whole.get("stage"), whole.get("state")
    if stage not in STAGES:
        raise GraftError(f"unknown stage {stage!r}")
    if not isinstance(state, dict):
        raise GraftError("the state is no object")
    use_annotations = whole.get("annotations", True)
    if not isinstance(use_annotations, bool):
        raise GraftError("annotations: true or false")
    annotations = _texts("annotations", state.get("annotations") or {})
    group = whole.get("group")
    if group is not None and not (isinstance(group, str) and _GROUP.fullmatch(group)):
        raise GraftError(f"{group!r} is no name for a group")
    return HookRequest(
        stage=stage,
        container_id=_container_id(state.get("id")),
        pid=_pid(state.get("pid", 0)),
        bundle=_bundle(state.get("bundle", "")),
        annotations=dict(_ours(annotations)) if use_annotations else {},
        state_annotations=annotations,
        settings=tuple(_settings(whole.get("options", {}))),
        group=group,
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _container_id(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise GraftError("the state names no container")
    return value


def _pid(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise GraftError(f"the state's pid is {value!r}")
    return value


def _bundle(value: object) -> str:
    if not isinstance(value, str) or (value and not os.path.isabs(value)):
        raise GraftError(f"the state's bundle is {value!r}")
    return value


def _texts(what: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise GraftError(f"the state's {what} are not texts")
    return value


def _ours(annotations: dict[str, str]) -> Iterable[tuple[str, str]]:
    for key, value in annotations.items():
        if key.startswith(ANNOTATION):
            yield key.removeprefix(ANNOTATION), value


def _settings(value: object) -> Iterable[tuple[str, str]]:
    """Options from the hook's own arguments, in their order: a list of [name, value], or an object of lists."""
    pairs: list[Any]
    if isinstance(value, dict):
        lists = {name: texts if isinstance(texts, list) else [texts] for name, texts in value.items()}
        pairs = [[name, text] for name, texts in lists.items() for text in texts]
    else:
        pairs = value if isinstance(value, list) else [None]
    for pair in pairs:
        match pair:
            case [str(name), str(text)]:
                yield name, text
            case _:
                raise GraftError("the hook's settings are not names and values")
