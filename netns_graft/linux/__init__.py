"""The kernel, by its own names: system calls, netlink, packet sockets and /proc. Raises ``OSError``.

Only modules in this folder may import ctypes or pyroute2 or read /proc. ``wiring`` is the one that imports pyroute2,
which costs some 170 ms, so nothing else here does, and only the short-lived builder process imports ``wiring``.
"""
