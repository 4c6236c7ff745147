"""A piece of kernel for each test: its own process, its own user namespace (unless it is root), its own network.

* ``child``    the decorator ``in_own_namespaces``: a test function runs in a fork that may do what it likes
* ``network``  network namespaces, links between them, and a small Internet of addresses
* ``grafts``   a real forwarder process with its workload namespace W, and the test in the supervisor's place
* ``frames``   Ethernet frames taken apart and put together, independently of netns_graft.wire.packet

Unlike ``lab`` this needs neither root nor any program that is installed.
"""
