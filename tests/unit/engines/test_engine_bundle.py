"""A second bundle with our hook in it; the first stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netns_graft.engines.bundle import RUNTIME, write_grafted
from netns_graft.engines.hook_files import Hook
from netns_graft.engines.podman_options import read_options
from netns_graft.errors import GraftError

HOOK = Hook(file="/x/oci_hook.py", python="/p", runtime_dir="/run/x")
NETWORK = {"namespaces": [{"type": "pid"}, {"type": "network"}]}


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "grafted").mkdir()

    def write(config: Any) -> Path:
        (tmp_path / "bundle" / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return tmp_path / "bundle"

    return write


def grafted(bundle: Path, hook: Hook = HOOK) -> dict[str, Any]:
    write_grafted(str(bundle), str(bundle.parent / "grafted"), hook)
    return json.loads((bundle.parent / "grafted" / "config.json").read_text())


def test_our_hook_goes_first_and_the_bundle_stays(bundle):
    theirs = {"path": "/bin/theirs"}
    config = {"root": {"path": "rootfs"}, "linux": NETWORK, "hooks": {"createRuntime": [theirs], "prestart": [theirs]}}
    path = bundle(config)
    hooks = grafted(path)["hooks"]
    assert hooks["createRuntime"][1] == theirs and hooks["prestart"] == [theirs]
    assert hooks["createRuntime"][0]["args"][4] == "createRuntime"
    assert "poststop" not in hooks
    assert json.loads((path / "config.json").read_text()) == config


def test_its_farewell_is_waited_for_when_its_records_go_to_a_file(bundle):
    path = bundle({"root": {"path": "rootfs"}, "linux": NETWORK, "hooks": {"poststop": [{"path": "/bin/theirs"}]}})
    ours, theirs = grafted(path, replace(HOOK, settings=[("flows", "/f")]))["hooks"]["poststop"]
    assert ours["args"][4] == "poststop" and theirs == {"path": "/bin/theirs"}


def test_paths_are_meant_from_the_bundle(bundle):
    mounts = [
        {"type": "bind", "source": "data", "destination": "/d"},
        {"source": "more", "options": ["rbind"], "destination": "/m"},
        {"type": "bind", "source": "/abs", "destination": "/a"},
        {"type": "proc", "source": "proc", "destination": "/proc"},
    ]
    path = bundle({"root": {"path": "rootfs", "readonly": True}, "linux": NETWORK, "mounts": mounts})
    config = grafted(path)
    assert config["root"] == {"path": f"{path}/rootfs", "readonly": True}
    assert [mount["source"] for mount in config["mounts"]] == [f"{path}/data", f"{path}/more", "/abs", "proc"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"linux": {"namespaces": [{"type": "pid"}]}}, "no network namespace"),
        ({}, "no network namespace"),
        ({"linux": None}, "no network namespace"),
        ({"linux": {"namespaces": [{"type": "network", "path": "/run/netns/x"}]}}, "joins the network namespace"),
        ("{", "not valid JSON"),
        ("[]", "not the configuration"),
        ({"linux": NETWORK, "hooks": []}, "not a map"),
        ({"linux": NETWORK, "root": "rootfs"}, "not the configuration"),
    ],
)
def test_what_cannot_be_grafted_is_refused(bundle, config, reason):
    with pytest.raises(GraftError, match=reason):
        grafted(bundle(config))
    assert not (bundle(config).parent / "grafted" / "config.json").exists()


def test_no_bundle_is_told(tmp_path):
    with pytest.raises(GraftError, match="no OCI bundle"):
        write_grafted(str(tmp_path), str(tmp_path), HOOK)


def test_the_runtimes_words_end_with_an_id():
    options, rest = read_options(["--pid-file", "x", "-d", "--no-pivot", "web"], RUNTIME)
    assert [option.name for option in options] == ["pid-file", "detach", "no-pivot"]
    assert rest == ["web"]
