"""The output files of one attempt: each goes into an object of its own while it is written."""

import asyncio
import contextlib
from typing import Final

from hearth_contracts import bounds, calls, names
from hearth_contracts.errors import InvalidName
from hearth_executor.bodies import AREA
from hearth_executor.errors import OutputRefused, OutputTooLarge
from hearth_kit.errors import BusError
from hearth_kit.objects import Objects, Writer

#: Chunks of one file on their way to the broker: half a MiB of memory, and a function writes to several files at once.
WINDOW_CHUNKS: Final = 2


class OutputFile:
    """One file. `ports.OutputFile`."""

    def __init__(self, outputs: "Outputs", writer: Writer, name: str, content_type: str, object_id: str) -> None:
        self.bytes_max = outputs.bytes_max
        self._outputs = outputs
        self._writer = writer
        self._name = name
        self._content_type = content_type
        self._object = object_id
        self.kept: calls.Output | None = None
        """Set once all of it is stored."""

    async def write(self, chunk: bytes) -> None:
        self._outputs.spend(len(chunk))
        await self._writer.write(chunk)

    async def finish(self) -> None:
        meta = await self._writer.finish()
        self.kept = calls.Output(
            name=self._name, size=meta.size, sha256=meta.sha256, content_type=self._content_type, object=self._object
        )

    async def remove(self) -> None:
        self.kept = None
        with contextlib.suppress(BusError):
            await self._writer.abandon()


class Outputs:
    """`prefix` begins the ids of its objects: no other dispatch of any job may have the same."""

    def __init__(self, objects: Objects, prefix: str, *, bytes_max: int, files_max: int = calls.OUTPUTS_MAX) -> None:
        self._objects = objects
        self._prefix = prefix
        self._files_max = files_max
        self._files: dict[str, OutputFile] = {}
        self._room = bytes_max
        self._meta_room = bounds.OUTPUTS_BYTES_MAX
        self.bytes_max = bytes_max

    def open(self, name: str, content_type: str) -> OutputFile:
        """Raises `OutputRefused`, whose words are the function's to read."""
        try:
            names.output(name)
        except InvalidName as error:
            raise OutputRefused(str(error)) from error
        if name in self._files:
            raise OutputRefused(f"output {name!r}: this call has a file of that name already")
        if len(self._files) >= self._files_max:
            raise OutputRefused(f"output {name!r}: a call may have {self._files_max} output files")
        object_id = f"{self._prefix}-out-{len(self._files) + 1}"
        kind = content_type if content_type.isprintable() else ""
        if bounds.text_bytes(kind) > bounds.OUTPUT_TYPE_BYTES_MAX:
            kind = ""
        described = bounds.output_bytes(name, kind, object_id)
        if described > self._meta_room:
            raise OutputRefused(f"output {name!r}: the names of a call's output files are too long together")
        self._meta_room -= described
        writer = self._objects.writer(
            AREA,
            object_id,
            bytes_max=self.bytes_max,
            content_type=kind or "application/octet-stream",
            window_chunks=WINDOW_CHUNKS,
        )
        file = self._files[name] = OutputFile(self, writer, name, kind, object_id)
        return file

    def spend(self, size: int) -> None:
        if size > self._room:
            raise OutputTooLarge(f"a call's output files may have {self.bytes_max} bytes together")
        self._room -= size

    async def keep(self) -> tuple[calls.Output, ...]:
        """The files that are whole, in the order in which they were opened; what there is of others is removed."""
        await self._remove([file for file in self._files.values() if file.kept is None])
        return tuple(file.kept for file in self._files.values() if file.kept is not None)

    async def remove(self) -> None:
        """Nothing of it is an output after all. What the broker does not let us remove now goes with its area's age."""
        await self._remove(list(self._files.values()))

    async def _remove(self, files: list[OutputFile]) -> None:
        removing = [file.remove() for file in files]
        if removing:
            await asyncio.gather(*removing)
