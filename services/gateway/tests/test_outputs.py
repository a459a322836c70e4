"""The files a job wrote, over HTTP: listed, whole, in part, and nobody else's."""

import hashlib
import random
from urllib.parse import quote

import pytest
from platform_double import Outcome

from hearth_contracts import subjects
from hearth_contracts.calls import ArchiveQuery, Call, Output
from hearth_kit.objects import Objects

pytestmark = pytest.mark.broker

#: Three chunks and some.
CONTENT = random.Random(7).randbytes(800_000)
NAMES = {"frames.bin": CONTENT, "empty": b"", "ü ber?#%2F&.txt": b"text"}


def output(call: Call, number: int, name: str, content: bytes, content_type: str = "") -> Output:
    return Output(
        name=name, size=len(content), sha256=hashlib.sha256(content).hexdigest(), content_type=content_type,
        object=f"{call.job}-1-0-out-{number}",
    )  # fmt: skip


@pytest.fixture
async def job(gateway) -> str:
    """One that wrote files."""

    async def work(call: Call, body: bytes) -> Outcome:
        files = []
        for number, (name, content) in enumerate(NAMES.items(), 1):
            file = output(call, number, name, content, "text/html" if name.endswith(".txt") else "")
            await Objects(gateway.bus).put("bodies", file.object, content)
            files.append(file)
        return Outcome(b"1", outputs=tuple(files))

    gateway.double.work = work
    await gateway.deploy()
    status, body, headers = await gateway.invoke()
    assert (status, body) == (200, 1)
    await gateway.call("GET", f"/v1/jobs/{headers['x-hearth-job']}?wait=10")
    return headers["x-hearth-job"]


def path(job: str, name: str) -> str:
    return f"/v1/jobs/{job}/outputs/{quote(name, safe='')}"


async def test_a_job_lists_its_files_with_their_sums(gateway, job):
    expected = [
        {
            "name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
            "content_type": "text/html" if name.endswith(".txt") else None, "href": path(job, name),
        }
        for name, content in NAMES.items()
    ]  # fmt: skip
    assert (await gateway.call("GET", f"/v1/jobs/{job}"))[1]["outputs"] == expected
    assert (await gateway.call("GET", f"/v1/jobs/{job}/outputs"))[1] == {"outputs": expected}


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_comes_whole(gateway, job, name):
    status, body, headers = await gateway.call("GET", path(job, name))
    assert (status, body) == (200, NAMES[name])
    assert headers["content-length"] == str(len(NAMES[name]))
    assert headers["etag"] == f'"{hashlib.sha256(NAMES[name]).hexdigest()}"'
    assert headers["accept-ranges"] == "bytes"
    # It may be a page, and it is never shown as one of ours.
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name, safe='')}"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("0-0", 0, 0),
        ("0-99", 0, 99),
        ("262143-262144", 262143, 262144),
        ("262144-524287", 262144, 524287),
        ("700000-", 700000, 799999),
        ("-1", 799999, 799999),
        ("1-9999999", 1, 799999),
    ],
)
async def test_a_part_of_a_file(gateway, job, asked, start, end):
    status, body, headers = await gateway.call("GET", path(job, "frames.bin"), headers={"range": f"bytes={asked}"})
    assert (status, headers["content-range"]) == (206, f"bytes {start}-{end}/800000")
    assert body == CONTENT[start : end + 1]
    assert headers["content-length"] == str(end - start + 1)


async def test_a_part_that_is_not_there(gateway, job):
    for name, asked in (("frames.bin", "800000-"), ("empty", "0-")):
        status, body, headers = await gateway.call("GET", path(job, name), headers={"range": f"bytes={asked}"})
        assert (status, body["code"]) == (416, "E_RANGE")
        assert headers["content-range"] == f"bytes */{len(NAMES[name])}"


async def test_a_range_is_only_meant_for_the_file_it_knows(gateway, job):
    etag = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    for known, status in ((etag, 206), ('"another"', 200), (f"W/{etag}", 200)):
        headers = {"range": "bytes=0-9", "if-range": known}
        assert (await gateway.call("GET", path(job, "frames.bin"), headers=headers))[0] == status
    for known, status in ((etag, 304), ('"another"', 200)):
        answer = await gateway.call("GET", path(job, "frames.bin"), headers={"if-none-match": known})
        assert (answer[0], len(answer[1])) == (status, 0 if status == 304 else len(CONTENT))


async def test_a_file_is_looked_at_without_its_bytes(gateway, job):
    status, body, headers = await gateway.call("HEAD", path(job, "frames.bin"))
    assert (status, body, headers["content-length"]) == (200, b"", "800000")


async def test_files_that_are_not_there(gateway, job):
    for name in ("nothing", "frames.bin ", "...", "frames.bin\0", "a" * 3000):
        status, body, _ = await gateway.call("GET", path(job, name))
        assert (status, body["code"]) == (404, "E_OUTPUT_NOT_FOUND"), name
    other = await gateway.tenant_key("other")
    for name in ("frames.bin", "nothing"):
        status, body, _ = await gateway.call("GET", path(job, name), key=other)
        assert (status, body["code"]) == (404, "E_JOB_NOT_FOUND")
    assert (await gateway.call("GET", path(job, "frames.bin"), key="-"))[0] == 401


async def test_a_job_that_has_not_ended_has_no_files_yet(gateway):
    gateway.double.placed = False
    await gateway.deploy()
    _, body, _ = await gateway.invoke(headers={"prefer": "respond-async"})
    status, problem, _ = await gateway.call("GET", path(body["job"], "frames.bin"))
    assert (status, problem["code"]) == (409, "E_JOB_NOT_FINISHED")
    assert (await gateway.call("GET", f"/v1/jobs/{body['job']}"))[1]["outputs"] == []


async def test_a_file_that_has_left_the_broker_is_asked_back_from_the_stores(gateway, job):
    objects = Objects(gateway.bus)
    name = f"{job}-1-0-out-1"
    await objects.delete("bodies", name)
    status, body, _ = await gateway.call("GET", path(job, "frames.bin"))
    assert (status, body["code"]) == (410, "E_OUTPUT_GONE")  # this archive holds nothing

    asked: list[ArchiveQuery] = []

    async def put_back(message) -> None:
        asked.append(message.meta(ArchiveQuery))
        await objects.put("bodies", name, CONTENT)
        message.respond(b"", {})

    for subscription in gateway.double.answering:
        await subscription.stop()
    await gateway.bus.subscribe(subjects.ARCHIVE, lambda message: gateway.double._tasks.start(put_back(message)))
    status, body, _ = await gateway.call("GET", path(job, "frames.bin"))
    assert (status, body) == (200, CONTENT)
    assert [(query.tenant, query.job, query.output) for query in asked] == [("default", job, name)]
