"""`python -m hearth_ai_proxy`"""

from hearth_ai_proxy.app import serve
from hearth_ai_proxy.config import Settings
from hearth_kit import lifecycle

if __name__ == "__main__":
    lifecycle.main(serve, Settings)
