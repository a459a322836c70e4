"""`python -m hearth_executor`"""

from hearth_executor.app import serve
from hearth_executor.config import Settings
from hearth_kit import lifecycle

if __name__ == "__main__":
    lifecycle.main(serve, Settings)
