"""ptrace mode: a program's network calls, stopped one by one, without a namespace.

* ``tracer``  the life of the traced threads: seized, forked, stopped, signalled, ended
* ``call``    one thread stopped at the entry of one system call

A thread stops at the calls that ``linux/seccomp.py`` lists and at what ptrace brings along: a fork, an exec, a signal.
Everything else runs untouched. When the tracer ends, whatever it traced ends with it (PTRACE_O_EXITKILL).
"""
