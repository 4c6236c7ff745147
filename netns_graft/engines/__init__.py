"""What we know of container engines, and nothing of flows: how podman and runtimes are told of our hook.

* ``podman_options``  podman's command line, as far as it can be at odds with a graft
* ``containers_conf`` where podman looks for hooks
* ``hook_files``      the hook's definition files
* ``installation``    ``hook install`` and ``uninstall``
* ``trial``           proof that podman fires the hook
* ``bundle``          an OCI bundle with our hook in it
* ``launch``          an engine as our child: signals and exit status as if it had been called itself
"""
