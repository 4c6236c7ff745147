"""Who is where in the lab. Documentation addresses, but for the one of example.com that everybody knows.

::

    host ── 192.0.2.10, 2001:db8:1::10          inet ── 192.0.2.1, 2001:db8:1::1
      a host of the user's: where netns-graft      all the rest of the world on one loopback:
      runs, with a proxy on its own loopback       every address below, and every port on each
"""

HOST, HOST6 = "192.0.2.10", "2001:db8:1::10"
GATEWAY, GATEWAY6 = "192.0.2.1", "2001:db8:1::1"

WEB, WEB6 = "93.184.216.34", "2606:2800:220:1::1"  # example.com
PROXY, PROXY6 = "198.51.100.10", "2001:db8:51::10"
DNS = "198.51.100.53"  # whom the host asks
DNS_OF_PROXIES = "198.51.100.54"  # whom the proxies ask: so that the two can be told apart
DENIED = "198.51.100.66"
OTHER = "198.51.100.67"
METADATA = "169.254.169.254"  # answers, so that the denial of it can be seen to matter
UNREACHABLE = "203.0.113.98"  # ICMP: host unreachable
BLACKHOLE = "203.0.113.99"  # silence
INET_ADDRESSES = [WEB, PROXY, DNS, DNS_OF_PROXIES, DENIED, OTHER, METADATA, "203.0.113.7", "8.8.8.8"]
INET_ADDRESSES6 = [WEB6, PROXY6]

# Ports of everything in inet, on each address.
HTTP, HTTPS = 80, 443
CLOSED = 81
ECHO, HOLD = 7, 9
RESET_AT_ONCE, COUNT, SPEAK_THEN_LISTEN, RESET_AFTER_BYTE, PAIRS, PEER = 1001, 1002, 1003, 1004, 1007, 1008
UPLOAD = 8081

# Ports of the proxies: on PROXY, PROXY6 and, the first one, on the host's loopback too.
SOCKS, SOCKS_AUTH = 1080, 1081  # microsocks
SOCKS4 = 1084  # ours; user id "graft"
DANTE, DANTE_AUTH = 1092, 1090  # dante
TINYPROXY, TINYPROXY_AUTH = 8888, 8889

# On the host: its own loopback, and all its addresses.
HOST_LOOPBACK_PAGE, HOST_PAGE = 8085, 8086

USER, PASSWORD = "graft", "s3cret-Pa55word"

HOSTS_FILE = f"""\
127.0.0.1 localhost
::1 localhost ip6-localhost
{HOST} labhost
{OTHER} only-in-hosts.example
"""
RESOLV_CONF = f"nameserver {DNS}\nsearch lab.example\n"

_WEB_BOTH = {"A": [WEB], "AAAA": [WEB6]}
ZONE: dict[str, dict[str, list[str]]] = {
    "example.com": {**_WEB_BOTH, "TXT": ['"v=spf1 -all"'], "MX": ["10 mail.example.com."]},
    "www.example.com": {"CNAME": ["example.com."]},
    "deb.example.org": {"A": [WEB]},  # indexes of packages: tests/engines
    "pypi.example.org": {"A": [WEB]},
    "npm.example.org": {"A": [WEB]},
    "v4only.example.com": {"A": [WEB]},
    "v6only.example.com": {"AAAA": [WEB6]},
    "big.example.com": {"TXT": [f'"{n:03} {"x" * 200}"' for n in range(20)]},
    "denied.example.org": {"A": [DENIED]},
    "other.example.net": {"A": [OTHER]},
    "nothing-there.example.net": {"A": [UNREACHABLE]},
    "server.lab.example": {"A": [WEB]},  # "server", by the search domain
    "socks.lab.example": {"A": [PROXY], "AAAA": [PROXY6]},
    "v6proxy.lab.example": {"AAAA": [PROXY6]},
    "rebind.example.org": {"A": ["127.0.0.1"]},  # a name that leads back to the host
    "metadata.example.org": {"A": [METADATA]},
}
