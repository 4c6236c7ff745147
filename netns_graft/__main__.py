"""``python -m netns_graft``: the same as the ``netns-graft`` script."""

import sys

from netns_graft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
