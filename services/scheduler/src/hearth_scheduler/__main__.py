"""`python -m hearth_scheduler`"""

from hearth_kit import lifecycle
from hearth_scheduler.app import serve
from hearth_scheduler.config import Settings

if __name__ == "__main__":
    lifecycle.main(serve, Settings)
