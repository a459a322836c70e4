"""What stops a command: a sentence, and where there is one, the command that mends it."""

from typing import ClassVar


class CommandError(Exception):
    """The command cannot go on."""

    code: ClassVar[str] = "E_COMMAND"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", *, fix: str = "", detail: str = "") -> None:
        super().__init__(message or type(self).__doc__ or "")
        self.message = message or (type(self).__doc__ or "").strip()
        self.fix = fix
        self.detail = detail


class NotRunning(CommandError):
    """No platform is running here."""

    code = "E_NOT_RUNNING"


class PortInUse(CommandError):
    """A port is taken by another program."""

    code = "E_PORT_IN_USE"


class BrokerUnfit(CommandError):
    """The broker is missing, too old, or does not run as it must."""

    code = "E_BROKER_UNFIT"


class StartFailed(CommandError):
    """A process did not become ready."""

    code = "E_START_FAILED"


class Refused(CommandError):
    """The gateway refused."""

    code = "E_REFUSED"

    def __init__(self, message: str, *, status: int, problem_code: str = "", fix: str = "", detail: str = "") -> None:
        super().__init__(message, fix=fix, detail=detail)
        self.status = status
        self.problem_code = problem_code
