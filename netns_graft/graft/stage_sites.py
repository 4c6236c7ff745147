"""Who lives on the stage: names, addresses, ports and pages. Plain data."""

from __future__ import annotations

ALLOWED, FORBIDDEN = "example.com", "forbidden.example"
METADATA = "169.254.169.254"  # where clouds hand a machine its secrets
HOST_NAME = "host.containers.internal"

WEB_V4, WEB_V6 = "93.184.216.34", "2606:2800:220:1::1"
FORBIDDEN_V4 = "203.0.113.66"
INTERNET = [WEB_V4, WEB_V6, FORBIDDEN_V4, METADATA]

WEB_PORT, ECHO_PORT = 80, 7
PRIVATE_PORT = 8080  # on the loopback of the stage's host

ZONE = {
    ALLOWED: [WEB_V4, WEB_V6],
    FORBIDDEN: [FORBIDDEN_V4],
    HOST_NAME: ["127.0.0.1"],
}
PAGES = {
    ALLOWED: "Hello, this is example.com.",
    FORBIDDEN: "You should not be here.",
    METADATA: "The machine's secret keys.",
    HOST_NAME: "A private service.",
}
