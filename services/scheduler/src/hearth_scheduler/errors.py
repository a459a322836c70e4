"""What the scheduler says when it ends a job itself: the `type` of a failure, stable."""

from typing import Final

REJECTED: Final = "E_FUNCTION_NOT_FOUND"
RECURSION: Final = "E_RECURSION"
UNDECODABLE: Final = "E_UNDECODABLE"
LOST: Final = "E_LOST"
TOO_LARGE: Final = "E_TOO_LARGE"
DEFECT: Final = "E_SCHEDULER"
