"""`python -m hearth_persister` runs the service; `... forget STORE` lets go of a store that is configured no longer."""

import sys

import uvloop

from hearth_kit import lifecycle
from hearth_persister.app import forget, serve
from hearth_persister.config import Settings

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "forget":
        uvloop.run(forget(Settings(), sys.argv[2]))
    else:
        lifecycle.main(serve, Settings)
