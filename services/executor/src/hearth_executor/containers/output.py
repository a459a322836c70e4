"""The output files of a call as they come over the link: each waits for nobody but its own reader."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from hearth_executor.containers import frames
from hearth_executor.containers.frames import Kind
from hearth_executor.containers.link import Link
from hearth_executor.errors import OutputRefused, OutputTooLarge
from hearth_executor.ports import OutputFile

#: Files of one call that are open, or on their last bytes, at once. Each may hold its window of credit and what is on its
#: way into the broker, so this bounds what one call can hold in memory: 16 MiB, and as a rule 1.
OPEN_MAX: Final = 16

Open = Callable[[str, str], OutputFile]
_Queue = asyncio.Queue[bytes | None]


class Reception:
    """`broke` is told when a file cannot be stored: the call cannot go on then."""

    def __init__(self, call: int, open_file: Open | None, link: Link, broke: Callable[[BaseException], None]) -> None:
        self._call = call
        self._open_file = open_file
        self._link = link
        self._broke = broke
        self._slots = asyncio.Semaphore(OPEN_MAX)
        self._open: dict[int, tuple[_Queue, asyncio.Task[None]]] = {}
        """Files whose last frame has not come."""
        self._waiting: dict[int, int] = {}
        self._ending = set[asyncio.Task[None]]()
        self._lost: BaseException | None = None

    # -- frames

    def opened(self, stream: int, question: dict[str, Any]) -> None:
        if stream in self._waiting:
            raise frames.ProtocolError("an output opened twice")
        name, content_type = question.get("name"), question.get("content_type") or ""
        try:
            if self._open_file is None:
                raise OutputRefused("this platform takes no output files")
            if len(self._open) >= OPEN_MAX:
                raise OutputRefused(f"{OPEN_MAX} output files are open at once already: close one")
            if not isinstance(name, str) or not isinstance(content_type, str):
                raise OutputRefused("a name is text")
            file = self._open_file(name, content_type)
        except OutputRefused as refused:
            self._answer(stream, {"ok": False, "error": str(refused)[:500]})
            return
        self._waiting[stream] = 0
        queue = _Queue()
        task = asyncio.get_running_loop().create_task(self._keep(stream, file, queue), name=f"hearth-output {self._call}")
        task.add_done_callback(self._done)
        self._open[stream] = queue, task

    def arrived(self, stream: int, flags: int, payload: bytes) -> None:
        if stream not in self._open:
            raise frames.ProtocolError("data for an output that is not open")
        queue, task = self._open[stream]
        if payload:
            self._waiting[stream] += len(payload)
            if self._waiting[stream] > frames.WINDOW_BYTES:
                raise frames.ProtocolError("more data than credit was given for")
            queue.put_nowait(payload)
        if flags & frames.END:
            queue.put_nowait(None)
            del self._open[stream]
            self._ending.add(task)

    # -- the end

    async def finished(self) -> BaseException | None:
        """Once every whole file is stored; what is not whole is let go. Answers why one could not be."""
        for _, task in self._open.values():
            task.cancel()
        tasks = {*self._ending, *(task for _, task in self._open.values())}
        if tasks:
            await asyncio.wait(tasks)
        return self._lost

    async def close(self) -> None:
        """Let nothing of it go on."""
        tasks = {*self._ending, *(task for _, task in self._open.values())}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- one file

    async def _keep(self, stream: int, file: OutputFile, queue: _Queue) -> None:
        async with self._slots:  # so many files can be ending still that the next one waits a moment
            self._answer(stream, {"ok": True, "bytes_max": file.bytes_max})
            whole = True
            while (chunk := await queue.get()) is not None:
                if whole:
                    try:
                        await file.write(chunk)
                    except OutputTooLarge:
                        whole = False  # it goes on coming, and is not kept: the function is no reason to break the link
                self._waiting[stream] -= len(chunk)
                self._link.give_credit(self._call, Kind.OUTPUT, stream, len(chunk))
            if whole:
                await file.finish()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and self._lost is None:
            self._lost = error
            self._broke(error)

    def _answer(self, stream: int, answer: dict[str, Any]) -> None:
        self._link.send(Kind.OUTPUT_ACK, frames.json_bytes(answer), call=self._call, stream=stream)
