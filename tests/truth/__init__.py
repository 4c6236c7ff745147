"""Attribution against known truth.

Programs inside a real graft note who they are and what their own socket is called at each connect; every record is
scored against that: *right* (this process, this source), *null* (nobody named), *wrong* (somebody else, or an address
that is not the socket's). Wrong must be 0 everywhere.

* ``scene``     a graft with servers, programs, NAT rules and nested namespaces, and the score
* ``test_rows`` the situations, numbered as in the issue that asked for them; printed as a matrix at the end
"""
