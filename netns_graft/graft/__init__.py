"""Builds a graft around a command, watches both, and leaves nothing behind.

::

    netns-graft (supervisor) ──fork──► forwarder ──fork──► builder (makes F and W, hands over its sockets, ends)
          │                               (own user namespace, host's network namespace)
          └──fork──► the command          (same user namespace, network namespace W, own mount namespace)

* ``fork``               a fork that works in namespaces of its own, and says when they stand
* ``forwarder_process``  the fork that becomes the forwarder; its side and the supervisor's
* ``builder``            the process that makes the namespaces
* ``command``            the fork that becomes the command
* ``supervisor``         signals, job control, the end

* ``stage``              a host and an Internet of its own, on which a graft can be shown; ``stage_servers`` and
                         ``stage_sites``: who lives there
"""
