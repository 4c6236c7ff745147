"""Configuration of the ready-made servers, and what they serve."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from lab import addresses as at

PAGE = b"hello from example.com\n"
SIZES = {"empty": 0, "one": 1, "mebi": 1 << 20, "big": 1 << 28}


def nginx(place: Path) -> str:
    return f"""\
user www-data;
pid {place}/nginx.pid;
error_log {place}/nginx-error.log;
worker_processes 2;
daemon off;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 100000;
    client_body_temp_path {place}/nginx-body;
    proxy_temp_path {place}/nginx-proxy;
    fastcgi_temp_path {place}/nginx-fastcgi;
    uwsgi_temp_path {place}/nginx-uwsgi;
    scgi_temp_path {place}/nginx-scgi;
    server {{
        listen {at.HTTP} default_server backlog=4096;
        listen [::]:{at.HTTP} default_server ipv6only=on backlog=4096;
        listen {at.HTTPS} ssl default_server;
        listen [::]:{at.HTTPS} ssl default_server ipv6only=on;
        ssl_certificate {place}/web.pem;
        ssl_certificate_key {place}/web.key;
        root {place}/www;
        location = /moved {{ return 302 http://www.example.com/; }}
    }}
}}
"""


def danted(place: Path, port: int, method: str) -> str:
    return f"""\
logoutput: {place}/danted-{port}.log
internal: {at.PROXY} port = {port}
internal: {at.PROXY6} port = {port}
external: {at.PROXY}
external: {at.PROXY6}
user.privileged: root
user.unprivileged: nobody
clientmethod: none
socksmethod: {method}
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
client pass {{ from: ::/0 to: ::/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 command: connect }}
socks pass {{ from: 0.0.0.0/0 to: ::/0 command: connect }}
socks pass {{ from: ::/0 to: 0.0.0.0/0 command: connect }}
socks pass {{ from: ::/0 to: ::/0 command: connect }}
"""


def tinyproxy(place: Path, port: int, *, authenticated: bool) -> str:
    return f"""\
User nobody
Group nogroup
Port {port}
Listen {at.PROXY}
Listen {at.PROXY6}
Timeout 60
MaxClients 512
LogFile "{place}/tinyproxy-{port}.log"
LogLevel Info
{f"BasicAuth {at.USER} {at.PASSWORD}" if authenticated else ""}
"""


def write_site(place: Path) -> dict[str, str]:
    """The web root below ``place``; gives the SHA-256 of each file of ``SIZES`` by name."""
    www = place / "www"
    www.mkdir()
    (www / "index.html").write_bytes(PAGE)
    digests = {}
    for name, size in SIZES.items():
        digest = hashlib.sha256()
        with open(www / name, "wb") as file:
            for start in range(0, size, 1 << 20):
                block = os.urandom(min(1 << 20, size - start))
                digest.update(block)
                file.write(block)
        digests[name] = digest.hexdigest()
    return digests


def write_repository(place: Path) -> None:
    """A git repository that any plain web server can serve: http://example.com/repository.git"""
    work, bare = place / "work", place / "www" / "repository.git"
    settings = {
        **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "lab", "GIT_AUTHOR_EMAIL": "lab@example.com",
        "GIT_COMMITTER_NAME": "lab", "GIT_COMMITTER_EMAIL": "lab@example.com",
    }  # fmt: skip

    def git(*arguments: str, cwd: Path = place) -> None:
        subprocess.run(
            ["git", *arguments], cwd=cwd, env=settings, check=True, capture_output=True, timeout=30
        )

    git("init", "-q", "-b", "main", str(work))
    (work / "README").write_text("cloned\n")
    (work / "blob").write_bytes(os.urandom(300_000))
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "a commit", cwd=work)
    git("clone", "-q", "--bare", str(work), str(bare))
    git("update-server-info", cwd=bare)


def write_certificates(place: Path) -> None:
    """A certificate authority of the lab's own (``ca.pem``) and example.com's certificate."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True, timeout=30)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new, "-subj", "/CN=Lab CA", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new, "-subj", "/CN=example.com", "-keyout", "web.key", "-out", "web.csr")
    (place / "names").write_text(
        f"subjectAltName=DNS:example.com,DNS:www.example.com,IP:{at.WEB},IP:{at.WEB6}\n"
    )
    openssl(
        "x509", "-req", "-in", "web.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "30", "-extfile", "names", "-out", "web.pem",
    )  # fmt: skip
