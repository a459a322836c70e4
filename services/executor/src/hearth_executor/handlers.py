"""What arrives: runs and control requests. Decode, hand over, answer."""

import logging

from hearth_contracts.calls import Run
from hearth_contracts.errors import UndecodableMessage
from hearth_contracts.fleet import Control, ControlDone
from hearth_executor.service import Executor
from hearth_kit.bus import contract_headers
from hearth_kit.message import Message

_log = logging.getLogger(__name__)


class Handlers:
    def __init__(self, *, executor: Executor, executor_id: str) -> None:
        self._executor = executor
        self._id = executor_id

    def run(self, message: Message) -> None:
        self._run(message, sync=False)

    def run_sync(self, message: Message) -> None:
        self._run(message, sync=True)

    def _run(self, message: Message, *, sync: bool) -> None:
        try:
            run = message.meta(Run)
        except UndecodableMessage as error:
            # Nobody will ever understand it; the sweeper ends a job that has no owner left.
            _log.error("a run does not parse: %s", error)
            message.term("undecodable")
            return
        if run.executor != self._id:
            _log.error("a run for %s came here", run.executor, extra={"job": run.call.job})
            message.term("another executor's")
            return
        self._executor.accept(run, message, sync=sync)

    def control(self, message: Message) -> None:
        try:
            asked = message.meta(Control)
        except UndecodableMessage as error:
            _log.error("a control request does not parse: %s", error)
            _answer(message, ControlDone(done=False, note="undecodable"))
            return
        if asked.verb == "cancel":
            found = self._executor.cancel(asked.job)
            _answer(message, ControlDone(done=found, note="" if found else "no such job here"))
        elif asked.verb == "drain":
            self._executor.drain()
            _answer(message, ControlDone(done=True, note=f"{self._executor.running} still run"))
        else:
            _answer(message, ControlDone(done=False, note=f"unknown verb {asked.verb[:40]!r}"))


def _answer(message: Message, done: ControlDone) -> None:
    message.respond(
        b"",
        contract_headers(meta=done, contract="control-done.v1", msg_id="", traceparent="", expect_last=None, headers=None),
    )
