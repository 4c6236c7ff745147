"""The definition files, held against what oci-hooks(5) asks for and against the hook's own reading of its arguments."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

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
    (pattern,) = HOOK.definition("createRuntime", always=False)["when"]["annotations"]
    assert re.search(pattern, "io.netns-graft.proxy")
    assert not any(re.search(pattern, key) for key in ("io.netns-graft", "xio.netns-graft.a", "io.netns_graft.a"))


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
