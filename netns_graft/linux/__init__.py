"""The kernel, by its own names: system calls, netlink, packet sockets and /proc. Raises ``OSError``.

Only modules in this folder may import ctypes or pyroute2 or read /proc. pyroute2 costs some 170 ms, so the demo's stage
and the doctor's trials alone import it, in processes of their own; what a command or a container waits for is packed
by hand (``rtnetlink``, ``gate``).
"""
