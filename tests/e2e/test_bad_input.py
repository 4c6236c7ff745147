"""What cannot work says so in one line, with the right status, and leaves nothing behind."""

import signal
from pathlib import Path

import pytest
from lab import addresses as at
from lab.grafting import Host


def refuse(host: Host, *options: str, status: int, **more: object) -> str:
    """``exec OPTIONS -- touch ran`` must fail before the command runs; gives the text after ``error:``."""
    done = host.run(*host.graft_argv(options, ["touch", "ran"]), **more)
    stderr = done.stderr.decode()
    assert done.returncode == status, stderr
    assert done.stdout == b""
    assert not (host.place / "ran").exists()
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("netns-graft: error: ")]
    assert len(errors) == 1, stderr
    others = [
        line
        for line in stderr.splitlines()
        if not line.startswith(("netns-graft: error: ", "netns-graft: hint: "))
    ]
    assert others == [] or status == 2, stderr  # a usage line may stand beside a usage error
    return (
        errors[0].removeprefix("netns-graft: error: ")
        + "\n"
        + "".join(line for line in stderr.splitlines() if line.startswith("netns-graft: hint: "))
    )


@pytest.mark.parametrize("options", [
    ["--frobnicate"], ["--dns", "bogus"], ["--default", "maybe"], ["--mode", "magic"], ["--proxy"],
    ["--allow", "10.0.0.0/99"], ["--deny", "example.com:99999"], ["--deny", "example.com:http"], ["--allow", ""],
    ["--deny", "a*b.example.com"], ["--allow", "[::1"],
], ids=" ".join)  # fmt: skip
def test_wrong_usage(user_host: Host, options: list[str]) -> None:
    refuse(user_host, *options, status=2)


@pytest.mark.parametrize("url", [
    "ftp://198.51.100.10:21", "socks5h://", "socks5h://198.51.100.10:99999", "socks5h://198.51.100.10:x", "nonsense",
    "http://[::1", "socks5h://198.51.100.10:1080/path", "direct,socks5h", "",
], ids=repr)  # fmt: skip
def test_unusable_url(user_host: Host, url: str) -> None:
    refuse(user_host, "--proxy", url, status=2)


def test_the_password_of_an_unusable_url_is_not_shown(user_host: Host) -> None:
    said = refuse(user_host, "--proxy", f"ftp://{at.USER}:{at.PASSWORD}@198.51.100.10:21", status=2)
    assert at.PASSWORD not in said


def test_no_command(user_host: Host) -> None:
    done = user_host.run(*user_host.graft_argv([], []))
    assert done.returncode == 2
    assert done.stderr.decode().count("netns-graft: error: ") == 1


@pytest.mark.route
def test_a_proxy_that_does_not_resolve(host: Host) -> None:
    said = refuse(host, "--proxy", "socks5h://no-such-proxy.lab.example:1080", status=125)
    assert "no-such-proxy.lab.example" in said


@pytest.mark.parametrize("where", ["/nonexistent/flows.jsonl", "/etc/passwd/flows.jsonl", "/etc"])
def test_flows_file_that_cannot_be(host: Host, where: str) -> None:
    assert where in refuse(host, "--flows", where, status=125)


def test_flows_file_that_may_not_be_written(user_host: Host) -> None:
    assert "/etc/hostname" in refuse(user_host, "--flows", "/etc/hostname", status=125)


@pytest.mark.parametrize("content", [None, "no colon here\n", ""], ids=["missing", "no colon", "empty"])
def test_credentials_file_that_is_none(user_host: Host, content: str | None) -> None:
    path = "no-such-file" if content is None else user_host.script("secret", content, mode=0o600)
    status = user_host.run(
        *user_host.graft_argv(
            ["--proxy", "socks5h://127.0.0.1:1080", "--proxy-credentials", path], ["touch", "ran"]
        )
    )
    assert status.returncode in (2, 125)
    assert status.stderr.decode().count("netns-graft: error: ") == 1
    assert Path(path).name in status.stderr.decode()
    assert not (user_host.place / "ran").exists()


class TestCommand:
    @pytest.mark.parametrize("name", ["no-such-command-anywhere", "./missing", "/nonexistent/program"])
    def test_not_found(self, host: Host, name: str) -> None:
        done = host.graft([], name)
        assert done.status == 127
        assert name.strip("./") in done.error_line()

    def test_not_executable(self, host: Host) -> None:
        done = host.graft([], host.script("text", "echo hello\n", mode=0o644))
        assert done.status == 126
        assert "text" in done.error_line()

    def test_a_directory(self, host: Host) -> None:
        done = host.graft([], "/etc")
        assert done.status == 126
        done.error_line()

    def test_a_script_without_its_interpreter(self, user_host: Host) -> None:
        done = user_host.graft([], user_host.script("script", "#!/nonexistent/shell\n"))
        assert done.status in (126, 127)
        done.error_line()


# A user namespace of the same user, in which no further one may be made; the powers that this needs are dropped.
WITHOUT_USER_NAMESPACES = [
    "unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c",
    'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all "$@"', "sh",
]  # fmt: skip


@pytest.mark.route
def test_user_namespaces_switched_off(user_host: Host) -> None:
    """Only within a namespace of the test's own: the machine's setting is everybody's."""
    argv = user_host.graft_argv([], ["touch", "ran"])
    done = user_host.run(*WITHOUT_USER_NAMESPACES, *argv)
    stderr = done.stderr.decode()
    assert done.returncode == 125, stderr
    assert stderr.count("netns-graft: error: ") == 1
    assert "user namespace" in stderr
    assert "max_user_namespaces" in next(
        line for line in stderr.splitlines() if line.startswith("netns-graft: hint: ")
    )
    assert not (user_host.place / "ran").exists()


def test_that_namespace_of_the_tests_is_no_hindrance_itself(user_host: Host) -> None:
    """The same, with a user namespace left to make: it works, so it was the switch that hindered."""
    allowed = [part.replace("echo 0", "echo 9") for part in WITHOUT_USER_NAMESPACES]
    done = user_host.run(*allowed, *user_host.graft_argv([], ["curl", "-sS", f"http://{at.WEB}/"]))
    assert done.returncode == 0, done.stderr


@pytest.mark.route
def test_no_network_namespaces(user_host: Host) -> None:
    argv = [part.replace("max_user_", "max_net_") for part in WITHOUT_USER_NAMESPACES]
    done = user_host.run(*argv, *user_host.graft_argv([], ["touch", "ran"]))
    assert done.returncode == 125
    assert done.stderr.decode().count("netns-graft: error: ") == 1
    assert not (user_host.place / "ran").exists()


def test_newuidmap_that_does_not_work(user_host: Host) -> None:
    """Sub-ids that cannot be mapped are no hindrance: one id is enough for a command."""
    fake = user_host.place / "bin"
    fake.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (fake / name).write_text("#!/bin/sh\nexit 1\n")
        (fake / name).chmod(0o755)
    path = f"{fake}:{user_host.environment()['PATH']}"
    done = user_host.graft([], "curl", "-sS", f"http://{at.WEB}/", env={"PATH": path})
    assert done.status == 0, done.stderr


def test_descriptor_limit(user_host: Host) -> None:
    """So few descriptors that nothing can be built: an error, and no traceback."""
    done = user_host.run(
        "sh", "-c", 'ulimit -n 9; exec "$@"', "sh", *user_host.graft_argv([], ["touch", "ran"])
    )
    assert done.returncode == 125, done.stderr
    assert b"Traceback" not in done.stderr
    assert not (user_host.place / "ran").exists()


def test_closed_standard_descriptors(user_host: Host) -> None:
    done = user_host.run(
        "sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *user_host.graft_argv([], ["touch", "ran"])
    )
    assert done.returncode == 0
    assert (user_host.place / "ran").exists()


def test_killed_while_it_starts(user_host: Host) -> None:
    """At whatever moment: what had been made by then is gone. (conftest.py looks.)"""
    for milliseconds in range(0, 400, 20):
        done = user_host.run(
            "timeout",
            "--signal=KILL",
            f"{milliseconds / 1000 + 0.01:.3f}",
            *user_host.graft_argv([], ["sleep", "60"]),
        )
        assert done.returncode == -signal.SIGKILL or done.returncode == 128 + signal.SIGKILL
