"""`python -m hearth_persister` runs the service; `... forget STORE` lets go of a store that is configured no longer."""

import sys

from hearth_kit import lifecycle
from hearth_persister.app import forget, serve
from hearth_persister.config import Settings

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "forget":
        lifecycle.main(lambda settings: forget(settings, sys.argv[2]), Settings)
    else:
        lifecycle.main(serve, Settings)
