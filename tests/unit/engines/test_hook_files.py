"""The definition files, held against what oci-hooks(5) asks for and against the hook's own reading of its arguments."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from netns_graft.engines.hook_files import STAGES, Hook, packaged_hook

HOOK = Hook(
    file=packaged_hook(), python="/opt/x/bin/python", runtime_dir="/nonexistent/netns-graft", log="/dev/null",
    group="build-1", annotations=False, settings=[("allow", "a b"), ("deny", ':1"\\'), ("allow", "c=d")],
)  # fmt: skip


def test_a_definition_for_each_stage():
    files = HOOK.files(always=True)
    assert [json.loads(text)["stages"] for text in files.values()] == [[stage] for stage in STAGES]
    for text in files.values():
        definition = json.loads(text)
        assert definition["version"] == "1.0.0"
        assert definition["when"] == {"always": True}
        assert Path(definition["hook"]["path"]).is_absolute()
        assert definition["hook"]["timeout"] > 20  # the hook's own limit, so that it can say why


def test_only_our_annotations_call_it():
    found = replace(HOOK, annotations=True).files(always=False)
    (pattern,) = json.loads(found["netns-graft-createRuntime.json"])["when"]["annotations"]
    assert re.search(pattern, "io.netns-graft.proxy")
    assert not any(re.search(pattern, key) for key in ("io.netns-graft", "xio.netns-graft.a", "io.netns_graft.a"))


PLAIN = Hook(file="/x/oci_hook.py", python="/p", runtime_dir="/run/x", annotations=False)


@pytest.mark.parametrize("always", [True, False])
def test_a_farewell_is_said_only_where_somebody_waits_for_the_records(always):
    to_file = replace(PLAIN, settings=[("deny", "a"), ("flows", "/f")])
    for hook, waits in (
        (PLAIN, False),
        (to_file, True),
        (replace(to_file, awaited=True), False),
        (replace(PLAIN, group="build-1"), True),
        (replace(to_file, group="build-1", awaited=True), True),
    ):
        assert ("netns-graft-poststop.json" in hook.files(always=always)) == waits
        assert ("poststop" in hook.stages()) == waits
        assert "netns-graft-createRuntime.json" in hook.files(always=always)


@pytest.mark.parametrize("always", [True, False])
def test_a_container_whose_annotation_names_a_file_is_waited_for(always):
    files = replace(PLAIN, annotations=True).files(always=always)
    (pattern,) = json.loads(files["netns-graft-poststop.json"])["when"]["annotations"]
    assert re.search(pattern, "io.netns-graft.flows")
    assert not any(re.search(pattern, f"io.netns-graft.{name}") for name in ("proxy", "flowsx", "xflows"))


def test_settings_keep_their_order():
    words = HOOK.arguments("createRuntime")
    given = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    assert given == ["allow=a b", 'deny=:1"\\', "allow=c=d"]


def test_the_hook_understands_its_arguments():
    """It comes as far as looking for its runtime directory's parent, which is not there."""
    done = subprocess.run(
        ["/usr/bin/python3", *HOOK.arguments("createRuntime")], input=b"{}", capture_output=True, timeout=20
    )
    assert done.returncode == 1
    assert b"its parent directory is not there" in done.stderr


def test_files_are_for_us_alone(tmp_path):
    HOOK.write(str(tmp_path), always=True)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        HOOK.files(always=True), 0o600
    )
