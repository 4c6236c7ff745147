"""May this flow leave? Pure: a request in, a decision out; no sockets, no resolver, no clock.

* ``request``    what is asked (``Request``) and what is answered (``Decision``, ``NeedsAddress``)
* ``names``      what counts as a host name, and names that stand for protected places
* ``addresses``  canonical addresses, the IPv4 address inside an IPv6 one, the protected ranges
* ``patterns``   ``host[:port]``, ``*.host[:port]``, ``cidr[:port]``, ``:port`` from text to a rule
* ``rules``      the ordered rules: first match wins, then protection, then the default

How a forwarder uses it::

    decision = policy.decide(Request(host, None, port))       # a name
    if isinstance(decision, NeedsAddress):
        ...resolve on the host, then for each address, asking the kernel whether it is the host's own:
        decision = policy.decide(Request(host, address, port, host_owned=...))
        ...or, when a proxy takes the name and nobody here resolves it:
        decision = policy.decide_by_name(Request(host, None, port))

The safety that holds whatever the rules say: an address is protected (the host's loopback, the host's own
addresses, link-local, multicast, broadcast, ...) until an allow rule *names* it. A rule names an address
when it is a network that lies wholly inside the protected range, or, for an address of the host itself, is
exactly that one address. A wide network, a port, or a host name that happens to resolve there names
nothing, so neither ``--allow 0.0.0.0/0`` nor a DNS answer of 127.0.0.1 opens the loopback. The one name
that does is ``host.containers.internal``, written out.
"""

from netns_graft.policy.addresses import canonical, embedded_ipv4
from netns_graft.policy.names import HOST_NAME
from netns_graft.policy.request import NEEDS_ADDRESS, Decision, NeedsAddress, Request
from netns_graft.policy.rules import Policy, parse_quick_rules

__all__ = [
    "HOST_NAME",
    "NEEDS_ADDRESS",
    "Decision",
    "NeedsAddress",
    "Policy",
    "Request",
    "canonical",
    "embedded_ipv4",
    "parse_quick_rules",
]
