"""The lab: a host, and an Internet with real servers, in namespaces that this process makes and removes.

* ``addresses``     who is where
* ``namespaces``    a namespace, and sockets born in it
* ``identities``    the users that run the program under test
* ``server_files``  configuration of the servers, what they serve
* ``internet``      the two namespaces wired, the servers started: class ``Lab``
* ``grafting``      run netns-graft in the lab and read what it leaves
* ``sniffer``       what was on the wire
* ``programs/``     the servers that are ours
"""
