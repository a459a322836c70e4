"""Files that a function writes while it runs: streamed out, listed, downloaded, kept in the store."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Client, Platform, client, hearth, started

from hearth_persister import reading

pytestmark = [pytest.mark.platform, pytest.mark.docker]

MIB = 1024 * 1024
#: MiB by which memory may grow however large a file is, as promised to users (the tests' own margin is none).
EXECUTOR_MIB, GATEWAY_MIB = 16, 32
SIZES = [
    pytest.param(256 * MIB, id="256MiB"),
    pytest.param(1024 * MIB, id="1GiB", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]

WRITES = """
import hashlib
import os

def pieces(size):
    block = hashlib.shake_256(b"hearth").digest(1024 * 1024)
    for number in range(size // len(block)):
        yield number.to_bytes(8, "big") + block[8:]

def alone(event, context):
    with context.output("frames.bin") as frames:
        for piece in pieces(event["size"]):
            frames.write(piece)

def handle(event, context):
    if event.get("pace_s"):
        import time
        print("begun", flush=True)
        with context.output("paced.bin") as paced:
            for piece in pieces(event["size"]):
                paced.write(piece)
                time.sleep(event["pace_s"])
        return context.attempt
    if event.get("alone"):
        return alone(event, context)
    with context.output("report.csv", "text/csv") as report:
        report.write("name,size\\n")
        with context.output("frames.bin") as frames:
            for piece in pieces(event["size"]):
                frames.write(piece)
                report.write(f"piece,{len(piece)}\\n")
    if event.get("leave"):
        with open("/output/left.txt", "w") as left:
            left.write("left behind\\n")
        os.symlink("/etc/passwd", "/output/passwd")
        os.mkfifo("/output/pipe")
        os.mkdir("/output/folder")
    if event.get("wait"):
        import time
        print("written", flush=True)
        time.sleep(120)
    if event.get("fail"):
        raise RuntimeError("as asked")
    return "done"
"""


def pieces(size: int) -> Iterator[bytes]:
    """What `WRITES` makes, here."""
    block = hashlib.shake_256(b"hearth").digest(MIB)
    for number in range(size // MIB):
        yield number.to_bytes(8, "big") + block[8:]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One executor, so that its memory is that of whoever carries the files."""
    with started(tmp_path_factory.mktemp("outputs") / "data", env={"HEARTH_SLOTS": "2"}) as running:
        yield running


@pytest.fixture
async def speaker(platform: Platform) -> AsyncIterator[Client]:
    async with client(platform) as made:
        await made.deploy("writes", WRITES, timeout_s=300)
        yield made


def listed(job: dict[str, Any]) -> dict[str, tuple[int, str]]:
    return {file["name"]: (file["size"], file["sha256"]) for file in job["outputs"]}


def described(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


async def stored(speaker: Client, job: str) -> reading.StoredRecord:
    """The job's record in the folder store, once it is there."""
    found: list[reading.StoredRecord] = []

    def look() -> bool:
        found[:] = [record for record in reading.read(speaker.platform.data / "store") if record.job == job]
        return bool(found)

    await speaker.until(look, 60, f"{job} was not stored")
    return found[0]


async def test_what_a_function_writes_can_be_downloaded_and_is_in_the_store(speaker: Client) -> None:
    size = 20 * MIB
    answer = await speaker.invoke("writes", {"size": size, "leave": True})
    assert (answer.status, answer.body) == (200, b"done"), answer
    job = answer.headers["x-hearth-job"]
    frames = b"".join(pieces(size))
    expected = {
        "report.csv": b"name,size\n" + b"piece,1048576\n" * 20,
        "frames.bin": frames,
        "left.txt": b"left behind\n",
    }
    # At once: the record follows a sync call's answer.
    for name, content in expected.items():
        got = await speaker.call("GET", f"/v1/jobs/{job}/outputs/{name}")
        assert (got.status, described(got.body)) == (200, described(content)), (name, got.status, got.body[:300])
        assert got.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert got.headers["content-length"] == str(len(content))
    part = await speaker.call("GET", f"/v1/jobs/{job}/outputs/frames.bin", headers={"range": "bytes=5242000-5243999"})
    assert (part.status, part.body) == (206, frames[5242000:5244000])
    past = await speaker.call("GET", f"/v1/jobs/{job}/outputs/frames.bin", headers={"range": f"bytes={size}-"})
    assert (past.status, past.json["code"]) == (416, "E_RANGE")
    missing = await speaker.call("GET", f"/v1/jobs/{job}/outputs/passwd")
    assert (missing.status, missing.json["code"]) == (404, "E_OUTPUT_NOT_FOUND")

    final = await speaker.final(job)
    assert listed(final) == {name: described(content) for name, content in expected.items()}
    assert [file["content_type"] for file in final["outputs"]] == ["text/csv", None, None]
    log = (await speaker.call("GET", f"/v1/jobs/{job}/logs")).body.decode()
    assert [f"/output/{name} is not a plain file" in log for name in ("passwd", "pipe", "folder")] == [True] * 3

    record = await stored(speaker, job)
    kept = {name: b"".join(record.chunks(part)) for name, part in record.outputs.items()}
    assert {name: described(content) for name, content in kept.items()} == listed(final)


async def test_the_command_line_lists_files_and_writes_one_to_stdout(speaker: Client) -> None:
    answer = await speaker.invoke("writes", {"size": MIB})
    job, where = answer.headers["x-hearth-job"], ("--data", str(speaker.platform.data))
    shown = await asyncio.to_thread(hearth, "outputs", job, *where)
    assert shown.returncode == 0, shown.stderr
    assert described(next(pieces(MIB)))[1] in shown.stdout
    got = await asyncio.to_thread(hearth, "outputs", job, "report.csv", *where)
    assert (got.returncode, got.stdout) == (0, "name,size\npiece,1048576\n"), got.stderr
    missing = await asyncio.to_thread(hearth, "outputs", job, "nothing", *where)
    assert missing.returncode == 1
    assert "./hearth outputs JOB" in missing.stderr


async def test_a_call_that_fails_or_is_cancelled_leaves_no_output(speaker: Client) -> None:
    failing = await speaker.invoke("writes", {"size": MIB, "fail": True})
    assert failing.status == 502
    failed = await speaker.final(failing.headers["x-hearth-job"])
    assert (failed["state"], failed["outputs"]) == ("FAILED", [])

    job = await speaker.submit("writes", {"size": MIB, "wait": True})

    async def has_written() -> bool:
        return b"written" in (await speaker.call("GET", f"/v1/jobs/{job}/logs?follow=0")).body

    await speaker.until(has_written, 30, "the function did not write")
    assert (await speaker.call("DELETE", f"/v1/jobs/{job}")).status == 200
    cancelled = await speaker.final(job)
    assert (cancelled["reason"], cancelled["outputs"]) == ("cancelled", [])
    gone = await speaker.call("GET", f"/v1/jobs/{job}/outputs/report.csv")
    assert (gone.status, gone.json["code"]) == (404, "E_OUTPUT_NOT_FOUND")


def peak(pid: int, field: str) -> float:
    """MiB, as the kernel counts: no sample can miss the highest."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


@pytest.mark.parametrize("size", SIZES)
async def test_a_large_file_makes_nobody_larger(speaker: Client, size: int) -> None:
    await speaker.invoke("writes", {"size": MIB})  # whatever is made at the first call is made
    pids = {name: speaker.platform.pid(name) for name in ("executor", "gateway", "persister")}
    for pid in pids.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = {name: peak(pid, "VmRSS") for name, pid in pids.items()}
    answer = await speaker.invoke("writes", {"size": size, "alone": True})
    assert answer.status == 200, answer
    job = answer.headers["x-hearth-job"]
    whole = hashlib.sha256()
    async with speaker.session.get(f"{speaker.platform.url}/v1/jobs/{job}/outputs/frames.bin") as download:
        assert download.headers["content-length"] == str(size)
        async for chunk in download.content.iter_chunked(MIB):
            whole.update(chunk)
    made = hashlib.sha256()
    for piece in pieces(size):
        made.update(piece)
    assert whole.hexdigest() == made.hexdigest()
    await stored(speaker, job)
    grown = {name: round(peak(pid, "VmHWM") - before[name], 1) for name, pid in pids.items()}
    print(json.dumps(grown))
    assert grown["executor"] < EXECUTOR_MIB, grown
    assert grown["gateway"] < GATEWAY_MIB, grown
    assert grown["persister"] < GATEWAY_MIB, grown


async def test_an_executor_that_dies_in_the_middle_leaves_whole_files_or_none(speaker: Client) -> None:
    """The job runs again elsewhere, and what is listed is what that run wrote."""
    size = 20 * MIB
    job = await speaker.submit("writes", {"size": size, "pace_s": 0.1})

    async def has_begun() -> bool:
        return b"begun" in (await speaker.call("GET", f"/v1/jobs/{job}/logs?follow=0")).body

    await speaker.until(has_begun, 30, "the function did not begin")
    speaker.platform.kill("executor")
    final = await speaker.final(job, within_s=90)
    assert final["state"] == "SUCCESS", final
    assert listed(final) == {"paced.bin": described(b"".join(pieces(size)))}
    got = await speaker.call("GET", f"/v1/jobs/{job}/outputs/paced.bin")
    assert described(got.body) == listed(final)["paced.bin"]
