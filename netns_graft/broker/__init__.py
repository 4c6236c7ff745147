"""The broker: one process per user namespace that turns a hook's question into a forwarder.

::

    hook ──one line──► zygote (hook.sock) ──fork──► forwarder of one container ──"ready"──► hook
                          │                             └─ workloads/NAME.sock
                          └─fork──► front (api.sock): HTTP, asks the forwarders' sockets

* ``request``   the hook's line: a container's state and its options, checked
* ``bundle``    what the container's config.json and resolv.conf say
* ``lifetime``  when a container's network is no longer needed
* ``container`` the fork that becomes a forwarder
* ``workloads`` the forwarders there are, by their sockets
* ``zygote``    everything imported, single-threaded, one fork for each question
* ``front``     the HTTP API, ``models`` its bodies, ``openapi`` its description

The broker keeps no state: what is grafted stands in the runtime directory as sockets that answer. So its death
disturbs nothing, and the next one finds everything.
"""
