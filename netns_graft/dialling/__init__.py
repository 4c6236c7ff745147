"""From the host to a flow's destination: directly, or through proxies, with names resolved at the right end.

* ``url`` and ``credentials``   what the user wrote, checked at start
* ``selection``                 which of them a flow may take, in which order
* ``upstreams``                 which one it takes, failover, chains
* ``tcp``, ``resolver``         connections and names on the host
* ``socks``, ``http_proxy``     one handshake each, on a connection that is there
* ``outcome``, ``place``        what a dial is asked for and gives; hosts as text

Two promises: every socket is closed on every path that does not hand it over, and no text from here shows a
password.
"""

from netns_graft.dialling.credentials import Credentials
from netns_graft.dialling.outcome import Blame, DialError, Dialled, Target
from netns_graft.dialling.resolver import Resolver, resolve
from netns_graft.dialling.selection import SelectMode, parse_upstreams
from netns_graft.dialling.upstreams import Upstreams
from netns_graft.dialling.url import redact

__all__ = [
    "Blame",
    "Credentials",
    "DialError",
    "Dialled",
    "Resolver",
    "SelectMode",
    "Target",
    "Upstreams",
    "parse_upstreams",
    "redact",
    "resolve",
]
