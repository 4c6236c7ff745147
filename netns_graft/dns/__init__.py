"""Names: what a workload gets when it asks for one, and what name an address stands for.

* ``service``      one per workload; every question goes in here, every answer comes out
* ``answering``    the answers that need no waiting
* ``synthetic``    an address of its own for each name, so that a connection carries its name
* ``resolvers``    asks the host's own resolvers, the way libc would
* ``resolv_conf``  the host's resolv.conf, and the one that a workload gets
* ``hosts``        the host's /etc/hosts
* ``followed``     a file of the host that may change while we run

Parsing and packing of messages is ``wire.dns``'s. Nothing here listens: the forwarder owns the sockets
towards the workload, we own those towards the resolvers.
"""
