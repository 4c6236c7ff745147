#!/usr/bin/python3 -IS
"""The OCI hook of netns-graft: hands a container's state to the broker, and lets it start only when told "ready".

    /usr/bin/python3 -IS oci_hook.py --stage createRuntime|createContainer|poststop --runtime-dir DIR
        --python PYTHON --log FILE [--set NAME=VALUE]... [--group NAME] [--annotations on|off] [--time-limit SECONDS]
        [--launch NAME]

--runtime-dir user is the directory of whoever runs the engine, and the log is in there unless it is given.

Stage createRuntime: it runs in the host's network namespace and, for a rootless engine, in the engine's user namespace.
Status 0 means that the container's network is grafted. Whatever else happens, the status is not 0, the engine gives
the container up, and one line on stderr and in the log says why (crun shows no stderr of hooks). Stage poststop only
says farewell; there is nothing to prevent any more, so it always ends with 0.

Stage createContainer is for crun without an engine and without root, besides the others: it runs inside the container's
network, which is closed to everybody outside, and hands it over. Where that was not needed it finds the graft there.

Python >= 3.9 without site packages: this file is all there is. It is on the way of every container's start, so it
imports little, and composes its one line of JSON by hand.
"""

import os
import sys
import time

try:  # the C halves of the two: their Python halves take longer to load (5 ms) than all that we do
    import _signal as signal
    import _socket as socket
except ImportError:  # a Python that has them otherwise
    import signal
    import socket

_STATE_LIMIT = 1 << 20  # bytes
_ANSWER_LIMIT = 1 << 16
_LOG_LIMIT = 1 << 20  # bytes
_STAGES = ("createRuntime", "createContainer", "poststop")
_FLAGS = ("stage", "runtime-dir", "python", "log", "group", "annotations", "time-limit", "launch")


class Refusal(Exception):
    """The container must not start; why."""


def main(argv):
    given = {"time-limit": "20", "annotations": "on", "set": []}
    status, reason = 1, None
    try:
        _read_arguments(argv, given)
        _limit_time(given)
        state = _read_state()
        given["who"] = _id_in(state)
        if given["stage"] == "poststop":
            status = 0
        answer = _hand_over(given, state) if given["stage"] == "createContainer" else _ask(given, state)
        if answer != "ready":
            raise Refusal(answer[8:] if answer.startswith("refused ") else f"the broker answered {answer[:200]!r}")
        status = 0
    except Refusal as refusal:
        reason = str(refusal)
    except OSError as error:
        reason = "{}{}".format(error.strerror or error, f": {error.filename}" if error.filename else "")
    except Exception as error:  # noqa: BLE001  # whatever it is, the container must not start
        reason = f"{type(error).__name__}: {error}"
    if given.get("stage") == "poststop":
        status = 0
    elif status or reason:
        status = status or 1
        _tell(given, reason)
    return status


def _read_arguments(argv, given):
    words = iter(argv)
    for word in words:
        name = word[2:] if word.startswith("--") else ""
        value = next(words, None)
        if value is None or (name not in _FLAGS and name != "set"):
            raise Refusal(f"hook: wrong argument {word!r}")
        if name == "set":
            given["set"].append(value)
        else:
            given[name] = value
    if given.get("runtime-dir") == "user":
        given["runtime-dir"] = _users_directory()
        given.setdefault("log", given["runtime-dir"] + "/hook.log")
    if given.get("stage") not in _STAGES or not os.path.isabs(given.get("runtime-dir", "")):
        raise Refusal("hook: --stage and --runtime-dir are needed; netns-graft hook install writes them")
    if given["annotations"] not in ("on", "off"):
        raise Refusal("hook: --annotations takes on or off")


def _users_directory():
    """As netns_graft.linux.places has it, for the user of the host who runs the engine: in a user namespace we look
    like root, and the namespace's map says who that is."""
    uid = os.geteuid()
    with open("/proc/self/uid_map") as ranges:
        for line in ranges:
            inside, outside, count = (int(word) for word in line.split())
            if inside <= uid < inside + count:
                uid = outside + uid - inside
                break
    if uid == 0:
        return "/run/netns-graft"
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given):
        return given + "/netns-graft"
    place = "/run/user/" + str(uid)
    return place + "/netns-graft" if os.path.isdir(place) else "/tmp/netns-graft-" + str(uid)


def _limit_time(given):
    """No wait of any kind outlasts the limit: then the kernel's alarm ends what we do, with our own words."""

    def expired(_number, _frame):
        raise Refusal("no answer within {} s".format(given["time-limit"]))

    try:
        seconds = float(given["time-limit"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # crun starts hooks, and so the broker, with all signals blocked
        signal.signal(signal.SIGALRM, expired)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    except (ValueError, OverflowError, OSError):
        raise Refusal("hook: wrong --time-limit {!r}".format(given["time-limit"])) from None


def _read_state():
    """The state as it is, on one line: JSON has line ends only between its tokens."""
    parts = []
    size = 0
    while True:
        part = os.read(0, 1 << 16)
        if not part:
            break
        size += len(part)
        if size > _STATE_LIMIT:
            raise Refusal(f"the container's state is longer than {_STATE_LIMIT} bytes")
        parts.append(part)
    state = b"".join(parts).strip().replace(b"\r", b" ").replace(b"\n", b" ")
    if not (state.startswith(b"{") and state.endswith(b"}")):
        raise Refusal("the container's state cannot be read")
    return state


def _id_in(state):
    """For the log: the state's first id, which is its own unless an engine writes annotations before it."""
    _, _, rest = state.partition(b'"id"')
    parts = rest.split(b'"', 2)
    return parts[1][:64].decode("ascii", "replace") if len(parts) == 3 else ""


def _question(given, state):
    settings = []
    for setting in given["set"]:
        name, equals, value = setting.partition("=")
        if not equals:
            raise Refusal(f"hook: --set {setting!r} is not NAME=VALUE")
        settings.append(f"[{_json(name)}, {_json(value)}]")
    return (
        '{{"stage": {}, "options": [{}], "group": {}, "annotations": {}, "state": '.format(
            _json(given["stage"]),
            ", ".join(settings),
            _json(given["group"]) if "group" in given else "null",
            "true" if given["annotations"] == "on" else "false",
        )
    ).encode() + state + b"}\n"


def _json(text):
    """ASCII only; what is no UTF-8 becomes a lone surrogate, as os.fsdecode has it."""
    parts = []
    for char in text:
        if char in '"\\':
            parts.append("\\" + char)
        elif " " <= char <= "~":
            parts.append(char)
        elif ord(char) < 0x10000:
            parts.append(f"\\u{ord(char):04x}")
        else:
            code = ord(char) - 0x10000
            parts.append(f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}")
    return '"{}"'.format("".join(parts))


def _ask(given, state):
    """One line from the broker. One that left between our connecting and its reading is followed by another."""
    question = _question(given, state)
    try:
        owner = os.stat(given["runtime-dir"]).st_uid
    except FileNotFoundError:
        pass  # it will be ours
    else:
        if owner != os.geteuid():
            raise Refusal("{} belongs to somebody else".format(given["runtime-dir"]))
    place = f"{given['runtime-dir']}/broker-{os.stat('/proc/self/ns/user').st_ino}"
    while True:
        sock = _connect(place, given)
        if sock is None:
            return "ready"  # poststop, and nobody there who could take leave
        try:
            try:
                sock.sendall(question)
            except BrokenPipeError:
                pass  # it may have answered before it had read all
            answer = _answer_on(sock)
        except ConnectionResetError:
            answer = ""
        finally:
            sock.close()
        if answer:
            return answer
        time.sleep(0.02)


def _hand_over(given, state):
    """The broker's process for this container, which the hook of stage createRuntime has made wait for us."""
    import array
    import hashlib
    import json

    container_id = json.loads(state)["id"]
    name = hashlib.sha256(container_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    directory = given["runtime-dir"] + "/handover"
    ns_fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        sock.connect(f"/proc/self/fd/{directory_fd}/{name}.sock")
    except (FileNotFoundError, ConnectionRefusedError):
        if any(interface == "eth0" for _index, interface in socket.if_nameindex()):
            return "ready"  # createRuntime's hook could open it, and has seen to everything
        raise Refusal("nobody waits for this container's network: is the hook at createRuntime as well?") from None
    sock.sendmsg([b"w"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ns_fd]))])
    return _answer_on(sock)


def _answer_on(sock):
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < _ANSWER_LIMIT:
        part = sock.recv(4096)
        if not part:
            break
        answer += part
    return answer.decode("utf-8", "replace").strip()


def _connect(place, given):
    """The broker's socket; started when there is none. Only the time limit ends the attempts."""
    path = place + "/hook.sock"
    address, directory_fd = path, None
    if len(os.fsencode(path)) > 107:
        _make_place(place, given)
        directory_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        address = f"/proc/self/fd/{directory_fd}/hook.sock"
    starter = None
    try:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(address)
                return sock
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
                if given["stage"] == "poststop":
                    return None
            except BlockingIOError:  # so many are waiting that the broker's backlog is full
                sock.close()
                time.sleep(0.01)
                continue
            if starter is None:
                _make_place(place, given)
                starter = Starter.only_one(place, given)
            else:
                starter.look_after(given)
            time.sleep(0.005)
    finally:
        if directory_fd is not None:
            os.close(directory_fd)
        if starter is not None:
            starter.close()


def _make_place(place, given):
    for directory in (given["runtime-dir"], place):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise Refusal(f"{directory}: its parent directory is not there; is $XDG_RUNTIME_DIR right?") from None


class Starter:
    """Starts the broker. Of many hooks at once, one holds the lock and starts it; the others wait for its socket."""

    def __init__(self, lock_fd, pid):
        self.lock_fd = lock_fd
        self.pid = pid

    @classmethod
    def only_one(cls, place, given):
        import fcntl

        lock_fd = os.open(place + "/starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            return None
        return cls(lock_fd, _start_broker(given))

    def look_after(self, given):
        """It ends with 0 when another broker is there; if that one is just leaving, a new one is started."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        if status != 0:
            raise Refusal("the broker does not start; see {}".format(given.get("log", "its log")))
        time.sleep(0.05)
        self.pid = _start_broker(given)

    def close(self):
        os.close(self.lock_fd)


def _start_broker(given):
    """A process of its own session that holds nothing of ours: runc waits for the end of our pipes."""
    python = given.get("python", "")
    if not os.access(python, os.X_OK):
        raise Refusal(f"the broker cannot be started: {python!r} is no program; netns-graft hook install")
    argv = [python, "-P", "-m", "netns_graft", "serve", "--runtime-dir", given["runtime-dir"]]
    # Nothing that is said to a container's engine may change what Python imports.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    environment.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        null_fd = os.open("/dev/null", os.O_RDWR)
        log_fd = _open_log(given)
        for fd in (0, 1, 2):
            os.dup2(null_fd if fd == 0 or log_fd is None else log_fd, fd)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execve(python, argv, environment)
    finally:
        os._exit(127)


def _open_log(given):
    if not given.get("log"):
        return None
    try:
        log_fd = os.open(given["log"], os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        size = os.fstat(log_fd).st_size
        if size > _LOG_LIMIT:  # as netns_graft.broker.container has it, for when no broker starts
            tail = os.pread(log_fd, _LOG_LIMIT // 4, size - _LOG_LIMIT // 4)
            os.ftruncate(log_fd, 0)
            os.write(log_fd, tail[tail.find(b"\n") + 1 :])
    except OSError:
        pass
    return log_fd


def _tell(given, reason):
    line = "netns-graft: error: the container was not started: {}\n".format(" ".join(str(reason).split()))
    data = line.encode("utf-8", "backslashreplace")
    try:
        os.write(2, data)
    except OSError:
        pass
    log_fd = _open_log(given)
    if log_fd is not None:
        try:
            whose = " ".join(word for word in ("hook", given.get("who"), given.get("launch")) if word)
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            os.write(log_fd, f"{moment} {whose}: ".encode("utf-8", "replace") + data)
        except OSError:
            pass


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
