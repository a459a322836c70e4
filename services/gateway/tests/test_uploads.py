"""Bundles: good ones deploy, and whatever is wrong with the others is said, without unpacking anything."""

import gzip
import io
import os
import resource
import struct
import tarfile
import time
import zipfile
import zlib

import aiohttp
import pytest
from platform_double import SOURCE

from hearth_gateway.errors import GatewayError
from hearth_gateway.functions import bundle

MAIN = SOURCE.encode()


def zipped(*entries, method=zipfile.ZIP_DEFLATED) -> bytes:
    """Entries: (name, data[, mode])."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data, *mode in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (mode[0] if mode else 0o100644) << 16
            archive.writestr(info, data)
    return out.getvalue()


def tarred(*entries, form=tarfile.PAX_FORMAT, pax=None) -> bytes:
    """Entries: (name, data, changes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as archive:
        for name, data, *changes in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = dict(pax or {})
            for key, value in (changes[0] if changes else {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def quiet_zip(*names: str) -> bytes:
    """zipfile warns about duplicate names; this does not."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zipped(*((name, MAIN) for name in names))


def overlapping() -> bytes:
    """An entry that lies inside another's data, with a header of its own: each alone is in order."""

    def local(name: bytes, data: bytes) -> bytes:
        head = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0)
        return head + name + data

    def central(name: bytes, data: bytes, offset: int) -> bytes:
        sizes = (zlib.crc32(data), len(data), len(data), len(name))
        return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *sizes, 0, 0, 0, 0, 0, offset) + name

    main, inner = local(b"main.py", MAIN), local(b"inner.py", MAIN)
    outer = main + local(b"data.bin", inner)
    directory = (
        central(b"main.py", MAIN, 0) + central(b"data.bin", inner, len(main)) + central(b"inner.py", MAIN, outer.rindex(inner))
    )
    return outer + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), len(outer), 0)


def edited(raw: bytes, at: bytes, offset: int, form: str, value: int, *, last: bool = False) -> bytes:
    out = bytearray(raw)
    place = out.rfind(at) if last else out.find(at)
    struct.pack_into(form, out, place + offset, value)
    return bytes(out)


def recompressed(raw_tar: bytes) -> bytes:
    return gzip.compress(raw_tar)


def tar_raw(*entries, **options) -> bytearray:
    return bytearray(gzip.decompress(tarred(*entries, **options)))


def resummed(block: bytearray) -> bytearray:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return block


def typed(kind: bytes) -> bytes:
    raw = tar_raw(("main.py", MAIN), ("x", b""))
    second = raw[1024:1536]
    second[156:157] = kind
    raw[1024:1536] = resummed(second)
    return recompressed(bytes(raw))


BAD = {
    "zip: parent": zipped(("../evil.py", b""), ("main.py", MAIN)),
    "zip: parent inside": zipped(("a/../../evil.py", b""), ("main.py", MAIN)),
    "zip: absolute": zipped(("/etc/cron.d/x", b""), ("main.py", MAIN)),
    "zip: backslash": zipped(("a\\..\\b", b""), ("main.py", MAIN)),
    "zip: drive": zipped(("C:/x", b""), ("main.py", MAIN)),
    "zip: empty part": zipped(("a//b", b""), ("main.py", MAIN)),
    "zip: dot": zipped(("a/./b", b""), ("main.py", MAIN)),
    "zip: control": zipped(("a\x01b", b""), ("main.py", MAIN)),
    "zip: right-to-left": zipped(("a\u202eyp.exe", b""), ("main.py", MAIN)),
    "zip: long name": zipped(("a" * 300, b""), ("main.py", MAIN)),
    "zip: deep": zipped(("/".join("a" * 40), b""), ("main.py", MAIN)),
    "zip: symlink": zipped(("l", b"/etc", 0o120777), ("main.py", MAIN)),
    "zip: symlink then write through": zipped(("l", b"/tmp", 0o120777), ("l/x", b"x"), ("main.py", MAIN)),
    "zip: device": zipped(("d", b"", 0o020666), ("main.py", MAIN)),
    "zip: fifo": zipped(("p", b"", 0o010666), ("main.py", MAIN)),
    "zip: setuid": zipped(("s", b"", 0o104755), ("main.py", MAIN)),
    "zip: case": zipped(("main.py", MAIN), ("Main.py", MAIN)),
    "zip: folder case": zipped(("a/x.py", b""), ("A/y.py", b""), ("main.py", MAIN)),
    "zip: unicode forms": zipped(("caf\u00e9.py", b""), ("cafe\u0301.py", b""), ("main.py", MAIN)),
    "zip: sharp s": zipped(("stra\u00dfe.py", b""), ("STRASSE.py", b""), ("main.py", MAIN)),
    "zip: twice": quiet_zip("main.py", "main.py"),
    "zip: file and folder": zipped(("a", b""), ("a/b", b""), ("main.py", MAIN)),
    "zip: overlap": overlapping(),
    "zip: size lie": edited(zipped(("main.py", MAIN)), b"PK\x01\x02", 24, "<L", 5),
    "zip: crc lie": edited(zipped(("main.py", MAIN)), b"PK\x01\x02", 16, "<L", 5),
    "zip: other local name": zipped(("main.py", MAIN)).replace(b"main.py", b"evil.py", 1),
    "zip: encrypted": edited(edited(zipped(("main.py", MAIN)), b"PK\x01\x02", 8, "<H", 1), b"PK\x03\x04", 6, "<H", 1),
    "zip: method": zipped(("main.py", MAIN), method=zipfile.ZIP_LZMA),
    "zip: cut": zipped(("main.py", MAIN))[:-30],
    "zip: count lie": edited(
        edited(zipped(("main.py", MAIN), ("b.py", b"")), b"PK\x05\x06", 8, "<H", 1), b"PK\x05\x06", 10, "<H", 1),
    "zip: unflagged name": zipped(("caf\u00e9.py", b""), ("main.py", MAIN)).replace(b"\x00\x08\x08\x00", b"\x00\x00\x08\x00"),
    "zip: empty": zipped(),
    "tar: parent": tarred(("../evil", b"x"), ("main.py", MAIN)),
    "tar: absolute": tarred(("/evil", b"x"), ("main.py", MAIN)),
    "tar: symlink": tarred(("l", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("main.py", MAIN)),
    "tar: link then write through": tarred(
        ("l", b"", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}), ("l/x", b"x"), ("main.py", MAIN)),
    "tar: hardlink": tarred(("h", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}), ("main.py", MAIN)),
    "tar: char device": tarred(("d", b"", {"type": tarfile.CHRTYPE}), ("main.py", MAIN)),
    "tar: block device": tarred(("d", b"", {"type": tarfile.BLKTYPE}), ("main.py", MAIN)),
    "tar: fifo": tarred(("p", b"", {"type": tarfile.FIFOTYPE}), ("main.py", MAIN)),
    "tar: setuid": tarred(("s", b"", {"mode": 0o4755}), ("main.py", MAIN)),
    "tar: case": tarred(("main.py", MAIN), ("MAIN.py", MAIN)),
    "tar: unicode forms": tarred(("caf\u00e9", b""), ("cafe\u0301", b""), ("main.py", MAIN)),
    "tar: twice": tarred(("main.py", MAIN), ("main.py", MAIN)),
    "tar: pax path": tarred(("ok", b""), ("main.py", MAIN), pax={"path": "../evil"}),
    "tar: pax size": tarred(("main.py", MAIN), pax={"size": "99999999999"}),
    "tar: pax padding": tarred(("main.py", MAIN), pax={"comment": "x" * 100_000}),
    "tar: pax sparse": tarred(("main.py", MAIN), pax={"GNU.sparse.major": "1"}),
    "tar: sparse": typed(b"S"),
    "tar: unknown kind": typed(b"Z"),
    "tar: checksum": recompressed(b"x" + bytes(tar_raw(("main.py", MAIN)))[1:]),
    "tar: cut": tarred(("main.py", os.urandom(9000)))[:2000],
    "tar: not gzip inside": b"\x1f\x8b" + b"x" * 100,
    "tar: garbage": recompressed(os.urandom(5000)),
    "tar: empty": tarred(),
    "plain tar": bytes(tar_raw(("main.py", MAIN))),
    "nothing": b"",
}  # fmt: skip


def inspected(raw: bytes, *, handler: str = "main:handle", filename: str = ""):
    return bundle.inspect(io.BytesIO(raw), len(raw), filename=filename, spec_handler=handler)


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_bundle_is_refused(name):
    with pytest.raises(GatewayError) as caught:
        inspected(BAD[name])
    assert caught.value.status == 422
    assert caught.value.problem.detail


GOOD = {
    "zip": zipped(("main.py", MAIN), ("data/", b""), ("data/x.txt", b"x")),
    "zip stored": zipped(("main.py", MAIN), method=zipfile.ZIP_STORED),
    "zip flagged unicode": zipped(("main.py", MAIN), ("caf\u00e9.txt", b"")),
    "tar pax": tarred(("main.py", MAIN), ("x" * 200 + "/y", b"")),
    "tar gnu": tarred(("main.py", MAIN), ("x" * 200 + "/y", b""), form=tarfile.GNU_FORMAT),
    "tar ustar": tarred(("main.py", MAIN), ("a" * 90 + "/" + "b" * 90, b""), form=tarfile.USTAR_FORMAT),
    "tar dot": tarred((".", b"", {"type": tarfile.DIRTYPE}), ("./main.py", MAIN)),
    "tar two members": gzip.compress(bytes(tar_raw(("main.py", MAIN)))[:1024])
        + gzip.compress(bytes(tar_raw(("main.py", MAIN)))[1024:]),
    "file": MAIN,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_good_bundle_passes(name):
    assert inspected(GOOD[name]).kind in ("zip", "tar.gz", "file")


def test_where_the_handler_may_be():
    package = zipped(("pkg/__init__.py", b""), ("pkg/mod.py", b"def run(e, c): pass"))
    assert inspected(package, handler="pkg.mod:run").kind == "zip"
    assert inspected(package, handler="pkg.mod.run").kind == "zip"
    assert inspected(zipped(("vendor/lib.py", b"handle = print")), handler="lib:handle").kind == "zip"
    for raw, handler, code, hint in (
        (package, "main:handle", "E_HANDLER_MISSING", "main.py"),
        (zipped(("project/main.py", MAIN)), "main:handle", "E_HANDLER_MISSING", "project/"),
        (package, "pkg.mod:walk", "E_HANDLER_MISSING", "run"),
        (zipped(("main.py", b"def handle(e, c):\n  return (\n")), "main:handle", "E_SYNTAX", "line 2"),
        (zipped(("main.py", b"\x00\x01")), "main:handle", "E_SYNTAX", "main.py"),
        (zipped(("main.py", b"x = " + b"(" * 3000)), "main:handle", "E_SYNTAX", "main.py"),
        (zipped(("main.py", b"x = " + b"-" * 100_000 + b"1")), "main:handle", "E_SYNTAX", "main.py"),
    ):
        with pytest.raises(GatewayError) as caught:
            inspected(raw, handler=handler)
        problem = caught.value.problem
        assert problem.code == code
        assert hint in problem.detail + problem.fix, problem


def test_requirements_need_their_packages_vendored():
    with pytest.raises(GatewayError) as caught:
        inspected(zipped(("main.py", MAIN), ("requirements.txt", b"requests==2.0\n")))
    assert caught.value.problem.code == "E_REQUIREMENTS_NOT_VENDORED"
    assert "vendor" in caught.value.problem.fix
    inspected(zipped(("main.py", MAIN), ("requirements.txt", b"# none\n\n")))
    inspected(zipped(("main.py", MAIN), ("requirements.txt", b"requests\n"), ("vendor/requests/__init__.py", b"")))


def zeros_zip(size: int, count: int = 1) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("main.py", MAIN)
        for number in range(count):
            with archive.open(f"z{number}", "w", force_zip64=False) as entry:
                left = size
                while left:
                    entry.write(bytes(min(left, 1 << 20)))
                    left -= min(left, 1 << 20)
    return out.getvalue()


def zeros_tar() -> bytes:
    """A tar.gz whose one file is 10 GiB of zeros, packed small by repeating one deflated block."""
    header = bytearray(tar_raw(("main.py", b""))[:512])
    header[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    resummed(header)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    out = packer.compress(bytes(header))
    for _ in range(400):
        out += packer.compress(bytes(1 << 20))
    return out + packer.flush()


def many_entries_zip(count: int) -> bytes:
    """A directory of a million entries, each of the least size."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    central = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, min(count, 0xFFFE), min(count, 0xFFFE), len(central) * count, len(local), 0
    )
    return local + central * count + end


BOMBS = {
    "zip of zeros": lambda: zeros_zip(200 << 20),
    "zip of many zeros": lambda: zeros_zip(60 << 20, 5),
    "zip lying about its size": lambda: edited(zeros_zip(100 << 20), b"PK\x01\x02", 24, "<L", 100, last=True),
    "zip of a million entries": lambda: many_entries_zip(1_000_000),
    "zip of too many entries": lambda: many_entries_zip(60_000),
    "tar of 10 GiB of zeros": zeros_tar,
    "nested": lambda: zipped(("main.py", MAIN), ("inner.zip", zeros_zip(100 << 20)), ("z", bytes(50 << 20))),
    "tar of many entries": lambda: tarred(*((f"f{i}", b"") for i in range(25_000)), form=tarfile.USTAR_FORMAT),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_is_stopped_soon_and_in_little_memory(name):
    raw = BOMBS[name]()
    before_kib, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(GatewayError) as caught:
        inspected(raw)
    assert caught.value.status == 422
    assert time.process_time() - cpu < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


# Over HTTP


async def put(
    gateway, code: bytes, *, filename: str = "code.zip", spec: str = "handler: main:handle", name: str = "hello", **extra
):
    form = aiohttp.FormData()
    form.add_field("spec", spec, content_type="application/yaml")
    form.add_field("code", io.BytesIO(code), filename=filename, content_type="application/octet-stream")
    for key, value in extra.items():
        form.add_field(key, value)
    return await gateway.call("PUT", f"/v1/functions/{name}", data=form)


@pytest.mark.broker
@pytest.mark.parametrize("name", sorted(GOOD))
async def test_good_bundles_deploy_over_http(gateway, name):
    status, body, _ = await put(gateway, GOOD[name], filename="main.py")
    assert status == 201, body
    assert {"name", "version", "digest", "state", "runtime", "backend"} <= set(body)
    assert (body["version"], body["state"], body["backend"]) == (1, "READY", "container")


@pytest.mark.broker
async def test_bad_bundles_are_422_over_http_and_the_connection_survives(gateway):
    for name, raw in BAD.items():
        status, body, headers = await put(gateway, raw)
        assert status == 422, (name, body)
        assert headers["content-type"] == "application/problem+json"
    assert (await put(gateway, GOOD["zip"]))[0] == 201
    assert (await gateway.call("GET", "/v1/functions"))[1]["functions"][0]["version"] == 1


@pytest.mark.broker
async def test_malformed_uploads(gateway):
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    for data, headers, statuses in (
        (b"--x\r\nbroken", boundary, {400}),
        (b"", boundary, {400}),
        (b"--x--\r\n", boundary, {400}),
        (b"x", {"content-type": "multipart/form-data"}, {400}),
        (b"x" * 5000, {"content-type": "multipart/form-data; boundary=" + "y" * 400}, {400}),
        (b'--x\r\ncontent-disposition: form-data; name="spec"\r\n\r\nhandler: main:handle\r\n--x--\r\n', boundary, {400}),
        (b"{", {"content-type": "application/json"}, {400}),
        (b"[]", {"content-type": "application/json"}, {400}),
        (b'{"a":' * 50_000, {"content-type": "application/json"}, {400}),
        (b'{"source":1}', {"content-type": "application/json"}, {400}),
        (b'{"source":"x","spec":{},"more":1}', {"content-type": "application/json"}, {400}),
        (b'{"source":"\\ud800","spec":{}}', {"content-type": "application/json"}, {400}),
        (b'{"source":"def handle(e,c): pass","source":"x"}', {"content-type": "application/json"}, {422}),
        (b"\xff\xfe", {"content-type": "application/json"}, {400}),
        (b"x", {"content-type": "image/png"}, {415}),
        (b"x" * 3_000_000, {"content-type": "application/json"}, {413}),
    ):
        status, body, _ = await gateway.call("PUT", "/v1/functions/hello", data=io.BytesIO(data), headers=headers)
        assert status in statuses, (data[:60], body)
    status, body, _ = await put(gateway, GOOD["zip"], more="x")
    assert (status, body["code"]) == (400, "E_BAD_REQUEST")
    for name in ("A", "a.b", "1a", "a" * 64, "a%2fb"):
        status, _, _ = await put(gateway, GOOD["zip"], name=name)
        assert status in (404, 422), name


@pytest.mark.broker
async def test_a_bundle_over_the_limit_is_refused_before_it_is_read(gateway):
    async def endless():
        yield b'--x\r\ncontent-disposition: form-data; name="code"; filename="a.zip"\r\n\r\n'
        while True:
            yield b"PK\x03\x04" * 16_384

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        status, _, _ = await gateway.call("PUT", "/v1/functions/hello", data=endless(), headers=headers)
    except (aiohttp.ClientError, ConnectionError):
        status = 413  # the connection was cut while still being written to
    assert status == 413


@pytest.mark.broker
async def test_spec_keys_inline_and_as_text(gateway):
    for body in (
        {"handler": "main:handle", "source": SOURCE},
        {"spec": "handler: main:handle\nmemory_mb: 256", "source": SOURCE},
        {"spec": {"name": "hello", "memory_mb": 64}, "source": SOURCE},
    ):
        status, answer, _ = await gateway.call("PUT", "/v1/functions/hello", json=body)
        assert status == 201, answer
    status, shown, _ = await gateway.call("GET", "/v1/functions/hello")
    assert (shown["version"], shown["spec"]["memory_mb"], shown["versions"]) == (3, 64, [1, 2, 3])
