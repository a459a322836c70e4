"""`python -m hearth_gateway`."""

from hearth_gateway.app import serve
from hearth_gateway.config import Settings
from hearth_kit import lifecycle

if __name__ == "__main__":
    lifecycle.main(serve, Settings)
