"""netns-graft: a network for commands and containers that nobody has to trust.

The main path, from the outside in:

* ``cli/``        the command line: options in, one line of error out
* ``graft/``      builds the namespaces, starts the forwarder and the command, watches both
* ``forwarder/``  takes every flow of one workload: who, verdict, dial, answer, relay, record
* ``attribution``, ``dialling/``, ``relay``, ``dns/``, ``journal``   one concern of a flow each
* ``policy/``     pure: a request in, a decision out
* ``linux/``      the only place for ctypes, pyroute2 and /proc
* ``wire/``       the only place for foreign bytes: bytes in, values out, no sockets, no clock
* ``flow``        the plain data that all of them speak about

Imports go downwards only; ``ARCHITECTURE.md`` has the drawing and import-linter keeps it true.
"""

__version__ = "0.1.0"
