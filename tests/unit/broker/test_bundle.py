"""What a bundle tells: the resolvers that libc in the container will ask, and whom the user chose."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from netns_graft.broker.bundle import name_in, read_bundle
from netns_graft.errors import GraftError


def bundle(place: Path, config: dict[str, Any] | None = None, image_conf: str | None = None) -> str:
    (place / "rootfs" / "etc").mkdir(parents=True)
    if image_conf is not None:
        (place / "rootfs" / "etc" / "resolv.conf").write_text(image_conf)
    whole = {"process": {"args": ["sleep", "1"]}, "root": {"path": "rootfs"}} | (config or {})
    (place / "config.json").write_text(json.dumps(whole))
    return str(place)


def mounted(path: Path) -> dict[str, Any]:
    return {"mounts": [{"destination": "/etc/resolv.conf", "source": str(path), "type": "bind"}]}


def test_without_a_resolv_conf_libc_asks_its_loopback(tmp_path: Path) -> None:
    found = read_bundle(bundle(tmp_path), "")
    assert found.args == ("sleep", "1")
    assert found.loopback_resolvers() == ["127.0.0.1", "::1"]


def test_the_images_own_says_where_to_answer_but_not_whom_to_ask(tmp_path: Path) -> None:
    found = read_bundle(bundle(tmp_path, image_conf="nameserver 127.0.0.11\nnameserver 169.254.169.253\n"), "")
    assert found.loopback_resolvers() == ["127.0.0.11"]
    assert found.chosen_resolvers("nameserver 10.0.0.1\n") is None


def test_the_engines_wins_and_names_whom_the_user_chose(tmp_path: Path) -> None:
    (tmp_path / "engine.conf").write_text("search corp.example\nnameserver 192.0.2.53\nnameserver 127.0.0.1\n")
    found = read_bundle(bundle(tmp_path, mounted(tmp_path / "engine.conf"), "nameserver 1.1.1.1\n"), "")
    chosen = found.chosen_resolvers("nameserver 10.0.0.1\n")
    assert chosen is not None
    assert [server.address for server in chosen.nameservers] == ["192.0.2.53"]
    assert found.chosen_resolvers("nameserver 10.0.0.1\nnameserver 192.0.2.53\n") is None, "the host's anyway"
    assert found.loopback_resolvers() == ["127.0.0.1"]


def test_servers_that_were_named_are_the_only_ones(tmp_path: Path) -> None:
    (tmp_path / "engine.conf").write_text("nameserver 192.0.2.53\noptions timeout:7\n")
    found = read_bundle(bundle(tmp_path, mounted(tmp_path / "engine.conf")), "")
    chosen = found.chosen_resolvers("nameserver 192.0.2.53\nnameserver 10.0.0.1\n", ["192.0.2.53"])
    assert chosen is not None
    assert ([server.address for server in chosen.nameservers], chosen.timeout) == (["192.0.2.53"], 7)


def test_paths_are_below_the_hooks_root(tmp_path: Path) -> None:
    inner = tmp_path / "run" / "bundle"
    inner.mkdir(parents=True)
    bundle(inner, image_conf="nameserver 127.0.0.7\n")
    assert read_bundle("/run/bundle", str(tmp_path)).loopback_resolvers() == ["127.0.0.7"]


def test_a_resolv_conf_that_is_no_file_counts_as_none(tmp_path: Path) -> None:
    path = bundle(tmp_path)
    os.mkfifo(tmp_path / "rootfs" / "etc" / "resolv.conf")
    assert read_bundle(path, "").loopback_resolvers() == ["127.0.0.1", "::1"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"process": 1}', '{"mounts": [1]}', '{"root": {"path": 5}}'])
def test_a_config_that_cannot_be_read_is_a_refusal(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(GraftError, match=r"config\.json"):
        read_bundle(str(tmp_path), "")


def test_no_bundle_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=r"config\.json"):
        read_bundle(str(tmp_path / "nowhere"), "")


def test_names_that_engines_annotate() -> None:
    assert name_in({"io.kubernetes.cri-o.Name": "k8s_web"}) == "k8s_web"
    assert name_in({"other": "x"}) is None
