"""Builds a graft around a command, watches both, and leaves nothing behind.

::

    netns-graft (supervisor) ──fork──► forwarder ──fork──► builder (makes F and W, hands over its sockets, ends)
          │                               (own user namespace, host's network namespace)
          └──fork──► the command          (same user namespace, network namespace W, own mount namespace)

* ``forwarder_process``  the fork that becomes the forwarder; its side and the supervisor's
* ``builder``            the process that makes the namespaces
* ``command``            the fork that becomes the command
* ``supervisor``         signals, job control, the end
"""
