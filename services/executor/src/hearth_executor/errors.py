"""What can go wrong in the executor, as one small tree.

ExecutorError
├── SandboxError          a sandbox or the code in it would not start: the call fails with `reason`
│   ├── ImageMissing      the runtime image is not there, with the command that makes it
│   └── LinkFailed        no link to the supervisor, or it broke the protocol
├── EventTooLarge         an event of a function's passes its limit; told to the function
├── OutputRefused         an output file is not taken; told to the function
├── OutputTooLarge        a call's output files pass their limit together: the file is not kept
└── BackendUnavailable    not the function's fault: hand the job back, burn no attempt
    ├── EngineMissing     no engine is installed
    ├── EngineStopped     it does not answer
    ├── EngineForbidden   it does not let us in
    ├── NoRoom            every sandbox the memory allows is busy
    └── SandboxSpent      this sandbox may serve no further call: take another
"""

from typing import ClassVar

from hearth_contracts.enums import Reason


class ExecutorError(Exception):
    """Something went wrong in the executor."""

    code: ClassVar[str] = "E_EXECUTOR"


class SandboxError(ExecutorError):
    """A sandbox would not start, or the code in it."""

    code = "E_SANDBOX"

    def __init__(self, message: str, *, reason: Reason = Reason.ERROR, error_type: str = "", traceback: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """The `Finished.reason` of the call that wanted the sandbox."""
        self.error_type = error_type
        """Name of the user's exception, when it is the code's import that failed."""
        self.traceback = traceback
        """Trimmed to the user's frames."""


class ImageMissing(SandboxError):
    """The runtime image is not on this machine."""

    code = "E_IMAGE"

    def __init__(self, image: str, fix: str = "./hearth images build") -> None:
        super().__init__(f"the runtime image {image!r} is not on this machine; make it with: {fix}", reason=Reason.IMAGE)
        self.image = image
        self.fix = fix


class LinkFailed(SandboxError):
    """There is no link to the sandbox's supervisor."""

    code = "E_LINK"

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LOST)


class BackendUnavailable(ExecutorError):
    """Sandboxes cannot be made just now; the job belongs elsewhere, or later."""

    code = "E_BACKEND_UNAVAILABLE"

    def __init__(self, message: str, *, fix: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.fix = fix
        """The one command that mends it, where there is one."""
        self.retry_after_s = retry_after_s


class EngineMissing(BackendUnavailable):
    """No container engine is installed."""

    code = "E_ENGINE_MISSING"


class EngineStopped(BackendUnavailable):
    """The container engine does not answer."""

    code = "E_ENGINE_STOPPED"


class EngineForbidden(BackendUnavailable):
    """The container engine does not let this user in."""

    code = "E_ENGINE_FORBIDDEN"


class NoRoom(BackendUnavailable):
    """Every sandbox that the memory allows is busy."""

    code = "E_NO_ROOM"


class SandboxSpent(BackendUnavailable):
    """The sandbox may serve no further call; nothing of this one has begun."""

    code = "E_SANDBOX_SPENT"


class EventTooLarge(ExecutorError):
    """The event is larger than an event may be."""

    code = "E_TOO_LARGE"


class OutputRefused(ExecutorError):
    """The output file is not taken."""

    code = "E_OUTPUT_REFUSED"


class OutputTooLarge(ExecutorError):
    """A call's output files are larger than they may be together."""

    code = "E_TOO_LARGE"
