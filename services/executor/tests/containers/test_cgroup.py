"""Control groups: where they are, what they read, what is written. On recorded trees of either version; the real kernel's
files are read in the tests with an engine."""

import itertools
import os
from pathlib import Path

import pytest

from hearth_executor.containers import cgroup
from hearth_executor.containers.cgroup import Events, GroupV1, GroupV2, Mount, Reading
from hearth_executor.domain.limits import Limits

ID = "c0b55a7ed7eca1c6c255999b506dbef28851d1e79a57560161484c506d6237af"

V1_MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""
V2_MOUNTS = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"

V1_MEMBERSHIP = f"""\
12:memory:/docker/{ID}
7:cpu,cpuacct:/docker/{ID}
5:pids:/docker/{ID}
4:freezer:/docker/{ID}
1:name=systemd:/docker/{ID}
0::/system.slice/containerd.service
"""
V2_MEMBERSHIP = f"0::/system.slice/docker-{ID}.scope\n"


@pytest.mark.parametrize(
    ("mounts", "membership", "expected"),
    [
        (V1_MOUNTS, V1_MEMBERSHIP, {"memory": f"/sys/fs/cgroup/memory/docker/{ID}", "cpuacct": f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}"}),
        (V2_MOUNTS, V2_MEMBERSHIP, {"": f"/sys/fs/cgroup/system.slice/docker-{ID}.scope"}),
        (HYBRID_MOUNTS, V1_MEMBERSHIP, {"memory": f"/sys/fs/cgroup/memory/docker/{ID}", "": "/sys/fs/cgroup/unified/system.slice/containerd.service"}),
        (V2_MOUNTS, "0::/../other\n", {}),
        (V2_MOUNTS.replace(" / /sys", " /system.slice /sys"), V2_MEMBERSHIP, {"": f"/sys/fs/cgroup/docker-{ID}.scope"}),
        (V2_MOUNTS.replace(" / /sys", " /other.slice /sys"), V2_MEMBERSHIP, {}),
        (V2_MOUNTS.replace("/sys/fs/cgroup rw", "/mnt/a\\040b rw"), V2_MEMBERSHIP, {"": f"/mnt/a b/system.slice/docker-{ID}.scope"}),
    ],
    ids=["v1", "v2", "hybrid", "above our view", "a part is mounted", "another part is mounted", "escaped name"],
)  # fmt: skip
def test_groups_are_found_through_our_own_mounts(mounts, membership, expected):
    found = cgroup.folders(cgroup.parse_mounts(mounts), cgroup.parse_membership(membership))
    assert {name: str(path) for name, path in found.items() if name in expected or not expected} == expected


def test_lines_that_are_no_mounts_are_passed_over():
    assert cgroup.parse_mounts("nonsense\n\n1 2 - \n") == []
    assert cgroup.parse_mounts(V2_MOUNTS) == [Mount(2, frozenset(), "/", "/sys/fs/cgroup")]


V1_FILES = {
    "memory/memory.usage_in_bytes": "20971520\n",
    "memory/memory.max_usage_in_bytes": "83886080\n",
    "memory/memory.limit_in_bytes": "134217728\n",
    "memory/memory.memsw.limit_in_bytes": "134217728\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/cgroup.procs": "100\n101\n",
    "cpu/cpu.cfs_quota_us": "100000\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpu/cpu.shares": "1024\n",
    "cpuacct/cpuacct.usage": "1234567890\n",
    "pids/pids.max": "64\n",
    "pids/pids.events": "max 7\n",
    "freezer/freezer.state": "THAWED\n",
}
V2_FILES = {
    "memory.current": "20971520\n",
    "memory.peak": "83886080\n",
    "memory.max": "134217728\n",
    "memory.swap.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 12\noom 4\noom_kill 3\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
    "cpu.max": "max 100000\n",
    "cpu.weight": "100\n",
    "pids.max": "64\n",
    "pids.events": "max 7\n",
    "cgroup.procs": "100\n101\n",
    "cgroup.freeze": "0\n",
}


def write_tree(top: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


@pytest.fixture
def v1(tmp_path):
    write_tree(tmp_path, V1_FILES)
    group = GroupV1({name: tmp_path / name for name in ("memory", "cpu", "cpuacct", "pids", "freezer")})
    yield group
    group.close()


@pytest.fixture
def v2(tmp_path):
    group = GroupV2(write_tree(tmp_path, V2_FILES))
    yield group
    group.close()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_read_the_same(version, request):
    group = request.getfixturevalue(version)
    assert group.read() == Reading(memory_bytes=20971520, peak_bytes=83886080, cpu_us=1234567)
    assert group.events() == Events(oom_kills=3, pids_refused=7)
    assert group.pids() == [100, 101]


def test_what_a_reading_costs_is_its_median(v1):
    """One reading that takes a second, as on a machine that pauses, does not count."""
    times = itertools.chain([0.0, 1.0], (1.0 + 10e-6 * tick for tick in itertools.count()))
    assert cgroup.reading_us(v1, clock=lambda: next(times)) == pytest.approx(10)


def test_version_1_writes_limits_in_an_order_the_kernel_takes(v1, tmp_path, monkeypatch):
    """Memory and swap together may never be below memory alone: growing begins with the sum, shrinking with memory."""
    order = []
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, at: order.append((os.readlink(f"/proc/self/fd/{fd}"), data)) or pwrite(fd, data, at)
    )
    for memory in (268435456, 100000000):
        order.clear()
        assert v1.set_limits(Limits(memory_bytes=memory, cpus=0.5, pids=32))
        names = [Path(name).name for name, data in order if data == str(memory).encode()]
        growing = ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
        assert names == (growing if memory == 268435456 else growing[::-1])
        (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{memory}\n")
    assert (tmp_path / "cpu/cpu.cfs_quota_us").read_text().startswith("50000")
    assert (tmp_path / "cpu/cpu.shares").read_text().startswith("512")
    assert (tmp_path / "pids/pids.max").read_text().startswith("32")


def test_version_2_writes_limits(v2, tmp_path):
    assert v2.set_limits(Limits(memory_bytes=268435456, cpus=2, pids=32))
    assert (tmp_path / "memory.max").read_text().startswith("268435456")
    assert (tmp_path / "memory.swap.max").read_text().startswith("0")
    assert (tmp_path / "cpu.max").read_text().startswith("200000 100000")
    assert (tmp_path / "cpu.weight").read_text().startswith("200")


def test_limits_that_may_not_be_written_are_told(tmp_path):
    """A missing file stands for one that may not be opened: root may open everything."""
    files = {name: text for name, text in V2_FILES.items() if name != "memory.max"}
    group = GroupV2(write_tree(tmp_path, files))
    assert not group.set_limits(Limits(memory_bytes=1, cpus=1))
    group.close()


def test_the_peak_is_reset_through_the_descriptor_it_is_read_by(v1, v2, tmp_path):
    assert v1.reset_peak()
    assert (tmp_path / "memory/memory.max_usage_in_bytes").read_text().startswith("0")
    assert v2.reset_peak()
    assert (tmp_path / "memory.peak").read_text().startswith("reset")


def test_a_kernel_without_a_peak_reads_the_present_and_resets_nothing(tmp_path):
    files = {name: text for name, text in V2_FILES.items() if name != "memory.peak"}
    group = GroupV2(write_tree(tmp_path, files))
    assert group.read().peak_bytes == 20971520
    assert not group.reset_peak()
    group.close()


def test_freezing_and_thawing(v1, v2, tmp_path):
    assert v1.freeze()
    assert v2.freeze()
    assert (tmp_path / "freezer/freezer.state").read_text().startswith("FROZEN")
    assert (tmp_path / "cgroup.freeze").read_text().startswith("1")
    assert v1.thaw()
    assert v2.thaw()
    assert (tmp_path / "freezer/freezer.state").read_text().startswith("THAWED")


def test_no_share_is_below_what_the_kernel_takes():
    assert cgroup.cpu_quota_us(0.5) == 50_000
    assert cgroup.cpu_quota_us(0.001) == 1_000


def test_a_process_is_believed_by_its_control_group_alone(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text(V2_MEMBERSHIP)
    assert cgroup.names_container(7, ID, proc=tmp_path)
    assert not cgroup.names_container(7, "f" * 64, proc=tmp_path)
    assert not cgroup.names_container(8, ID, proc=tmp_path)


def test_locate_prefers_version_1_in_a_hybrid_and_gives_up_quietly(tmp_path):
    memory = tmp_path / "memory"
    write_tree(memory, {f"docker/{ID}/memory.usage_in_bytes": "1\n", f"docker/{ID}/memory.max_usage_in_bytes": "1\n"})
    unified = write_tree(tmp_path / "unified", {f"docker/{ID}/cgroup.procs": ""})
    write_tree(tmp_path, {
        "self/mountinfo": f"1 1 0:1 / {memory} rw - cgroup cgroup rw,memory\n2 1 0:2 / {unified} rw - cgroup2 cgroup2 rw\n",
        "7/cgroup": f"4:memory:/docker/{ID}\n0::/docker/{ID}\n",
        "8/cgroup": f"0::/docker/{ID}\n",
    })  # fmt: skip
    found = cgroup.locate(7, proc=tmp_path)
    assert found is not None
    assert found.version == 1
    assert cgroup.locate(8, proc=tmp_path) is None, "a hierarchy without a memory controller measures nothing"
    assert cgroup.locate(9, proc=tmp_path) is None
    (unified / f"docker/{ID}/memory.current").write_text("1\n")
    assert getattr(cgroup.locate(8, proc=tmp_path), "version", None) == 2
    (memory / f"docker/{ID}/memory.max_usage_in_bytes").unlink()
    assert cgroup.locate(7, proc=tmp_path) is None, "a container that ends while it is looked at"
