"""Takes every flow of one workload: who opened it, what policy says, where it goes, how it ended.

* ``reactor``  an epoll of its own inside the asyncio loop, for what happens per packet and per chunk
* ``core``     a flow's life: held SYN → who → verdict → dial → answer → relay → record
* ``verdict``  what policy says, and where the flow is then dialled
* ``names``    DNS over UDP and TCP, whatever address was asked
* ``serve``    the forwarder's process: from the wiring and the settings to the last record
"""
