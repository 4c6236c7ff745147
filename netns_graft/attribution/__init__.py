"""Which process opened this flow?

Two questions, one after the other.

* ``origin``    *Which socket sent this?* The addresses on the wire are looked up exactly, after every translation on
  the way was undone, in the workload's namespace W and in those nested below it.
* ``holders``   *Who holds that socket?* The link /proc/PID/fd/N says "socket:[INODE]"; we look where it is likely
  first and everywhere at last.
* ``sharing``   *Who else holds it, and which of them opened the flow?*
* ``portrait``  *What is that process?* Its program, arguments and ancestors.

Invariant: an answer is exact or absent. A socket that nobody can be found for has ``process`` None; nothing is
inferred from ports, times or names. A flow's SYN is held while we look, so the process is still in ``connect()``
unless it was killed or closed the socket.
"""

from netns_graft.attribution.attributor import AttributionMethod, Attributor

__all__ = ["AttributionMethod", "Attributor"]
