"""What ``ps`` shows of a process with passwords on its command line: asked from outside, of a real one."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.cli.argv import _password_spans
from netns_graft.linux.argv import argument_memory

CODE = (
    "import sys; from netns_graft.cli.argv import hide_secrets_in_ps as hide;"
    "print(hide(sys.argv), sys.argv[1:], flush=True); sys.stdin.read()"
)


@contextmanager
def process(*words, interpreter=(sys.executable, "-c", CODE)):
    """(what it printed, what others see of it)"""
    started = subprocess.Popen([*interpreter, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        said = started.stdout.readline().decode().strip()
        with open(f"/proc/{started.pid}/cmdline", "rb") as file:
            yield said, file.read()
    finally:
        started.communicate()
        assert started.returncode == 0


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (
            ["exec", "--proxy", "socks5h://me:s3cret@h:1080", "curl"],
            "exec --proxy socks5h://me:******@h:1080 curl",
        ),
        (["exec", "--proxy=http://me:s3cret@h:1", "curl"], "exec --proxy=http://me:******@h:1 curl"),
        (
            [
                "exec",
                "--proxy",
                "socks5://a:s3cret@h:1,http://b:s3cret2@i:2",
                "--proxy=socks5://c:s3cret@j:3",
                "x",
            ],
            "exec --proxy socks5://a:******@h:1,http://b:*******@i:2 --proxy=socks5://c:******@j:3 x",
        ),
        (
            ["exec", "--proxy", "socks5://u:s3cret@@/,:x@h:1,direct", "x"],
            "exec --proxy socks5://u:************@h:1,direct x",
        ),
        (["exec", "--proxy", "socks5://:s3cret@h:1", "x"], "exec --proxy socks5://:******@h:1 x"),
        (["exec", "--proxy", "socks5://u:s3crét@h:1", "é"], "exec --proxy socks5://u:*******@h:1 é"),
    ],
)
def test_a_password_is_not_to_be_seen(words, seen):
    with process(*words) as (said, cmdline):
        assert cmdline.decode().endswith("\0" + seen.replace(" ", "\0") + "\0")
        assert b"s3cret" not in cmdline
        # ... and Python's own copy is whole.
        assert said == f"True {words}"


def test_behind_pythons_own_arguments():
    interpreter = (sys.executable, "-X", "dev", "-W", "ignore", "-c", CODE)
    with process("exec", "--proxy", "http://u:s3cret@h:1", interpreter=interpreter) as (said, cmdline):
        assert said.startswith("True")
        assert cmdline.split(b"\0")[1:5] == [b"-X", b"dev", b"-W", b"ignore"]
        assert cmdline.endswith(b"\0--proxy\0http://u:******@h:1\0")


def test_a_password_that_is_not_utf8():
    word = b"--proxy=http://u:\xff\xfe@h:1"
    with process(word) as (said, cmdline):
        assert said.startswith("True")
        assert cmdline.endswith(b"\0--proxy=http://u:**@h:1\0")


@pytest.mark.parametrize(
    "words", [[], ["exec", "curl", "http://u:s3cret@h/"], ["--proxy"], ["--proxy", "http://u@h:1"]]
)
def test_nothing_to_hide_changes_nothing(words):
    with process(*words) as (said, cmdline):
        assert said == f"True {words}"
        assert cmdline == b"".join(os.fsencode(word) + b"\0" for word in [sys.executable, "-c", CODE, *words])


def test_arguments_that_are_not_the_process_own_are_left_alone():
    code = CODE.replace("hide(sys.argv)", "hide([*sys.argv, 'x'])")
    words = ["--proxy", "http://u:s3cret@h:1"]
    with process(*words, interpreter=(sys.executable, "-c", code)) as (said, cmdline):
        assert said.startswith("False")
        assert cmdline.endswith(b"http://u:s3cret@h:1\0")


def test_main_does_it_before_any_command():
    code = (
        "import sys; from netns_graft.cli import main;"
        "main._COMMANDS['wait'] = lambda argv: print(argv, flush=True) or len(sys.stdin.read());"
        "sys.exit(main.main())"
    )
    words = ["wait", "--proxy", "http://u:s3cret@h:1"]
    with process(*words, interpreter=(sys.executable, "-c", code)) as (said, cmdline):
        assert said == str(words[1:])
        assert cmdline.endswith(b"\0wait\0--proxy\0http://u:******@h:1\0")


def test_argument_memory_is_what_the_kernel_shows():
    _, memory = argument_memory()
    with open("/proc/self/cmdline", "rb") as file:
        assert memory == file.read()


passwords = st.binary(min_size=1, max_size=12).filter(lambda p: b"\0" not in p and b"," not in p)


@given(st.lists(passwords, min_size=1, max_size=4), st.booleans())
def test_every_password_of_a_chain_is_found_whatever_its_bytes(chain, joined):
    urls = [b"socks5://user:" + password + b"@h:1" for password in chain]
    value = b",".join(urls)
    words = [b"--proxy=" + value] if joined else [b"--proxy", value]
    whole = b"\0".join(words)
    assert [whole[first:last] for first, last in _password_spans(words)] == chain
