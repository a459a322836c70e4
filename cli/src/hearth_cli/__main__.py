"""`python -m hearth_cli`: the hearth command."""

import sys

from hearth_cli.app import main

if __name__ == "__main__":
    sys.exit(main())
