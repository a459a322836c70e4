"""The hardened profile: asked for, checked by inspect, and the checks shown to bite."""

import copy
import inspect
import json
import subprocess
import sys

import pytest

from hearth_executor.containers import profile
from hearth_executor.containers.pytest_plugin import ProfileWatch
from hearth_executor.domain.limits import at_boot, folders

UID = 0x77000005
OWNER = profile.Owner("platform", "executor", "0badcafe")


def config(mode="fast", image="image", **changes):
    asked = profile.create_config(
        image=image, owner=OWNER, runtime="python", class_mb=128, uid=UID, mode=mode, socket_name="hearth-x",
        limits=at_boot(128), folders=folders(128),
    )  # fmt: skip
    return asked | changes


def inspected(asked):
    """What an engine would show of a container made by this request and by nothing else."""
    asked = copy.deepcopy(asked)
    host = asked.pop("HostConfig")
    return {"HostConfig": host, "Config": asked, "Mounts": [], "NetworkSettings": {"Networks": {"none": {}}}}


@pytest.mark.parametrize("mode", ["fast", "stdio"])
def test_what_is_asked_for_is_the_profile(mode):
    assert profile.deviations(inspected(config(mode))) == []


TAMPERED = {
    "NetworkMode": "bridge", "ReadonlyRootfs": False, "Privileged": True, "CapDrop": [], "CapAdd": ["SYS_ADMIN"],
    "SecurityOpt": ["no-new-privileges", "seccomp=unconfined"], "PidMode": "host", "UTSMode": "host", "UsernsMode": "host",
    "IpcMode": "host", "CgroupnsMode": "host", "PidsLimit": 0, "Memory": 0, "MemorySwap": -1, "OomKillDisable": True,
    "NanoCpus": 0, "Ulimits": [], "LogConfig": {"Type": "json-file"}, "Init": False, "RestartPolicy": {"Name": "always"},
    "Binds": ["/:/host"], "Mounts": [{"Type": "bind"}], "VolumesFrom": ["other"], "Devices": [{"PathOnHost": "/dev/kvm"}],
    "DeviceRequests": [{"Driver": "nvidia"}], "PortBindings": {"80/tcp": []}, "Links": ["db"], "ExtraHosts": ["a:1.2.3.4"],
    "GroupAdd": ["docker"], "Sysctls": {"net.ipv4.ip_forward": "1"}, "CgroupParent": "/", "Dns": ["10.0.0.2"],
    "MaskedPaths": [], "ReadonlyPaths": [], "Runtime": "kata", "Tmpfs": {},
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_each_thing_tampered_with_is_a_deviation(name):
    shown = inspected(config())
    shown["HostConfig"][name] = TAMPERED[name]
    assert profile.deviations(shown) != []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "0:0"), ("User", ""), ("User", f"{UID}:0"), ("Volumes", {"/data": {}}), ("Tty", True), ("Labels", {}),
        ("Entrypoint", ["/bin/sh"]), ("Cmd", ["stdio", "more"]), ("Healthcheck", {"Test": ["CMD", "true"]}),
    ],
)  # fmt: skip
def test_each_thing_tampered_with_inside_the_container_is_a_deviation(name, value):
    shown = inspected(config())
    shown["Config"][name] = value
    assert profile.deviations(shown) != []


@pytest.mark.parametrize("option", ["noexec", "nosuid", "nodev", f"size={64 * 1024 * 1024}", "nr_inodes=16384", "mode=1777"])
def test_scratch_without_one_of_its_options_is_a_deviation(option):
    shown = inspected(config())
    scratch = shown["HostConfig"]["Tmpfs"]["/tmp"].split(",")
    assert option in scratch
    shown["HostConfig"]["Tmpfs"]["/tmp"] = ",".join(part for part in scratch if part != option)
    assert profile.deviations(shown) != []


def test_one_call_more_in_the_filter_is_a_deviation():
    shown = inspected(config())
    loose = json.loads(profile.seccomp())
    loose["syscalls"][0]["names"].append("ptrace")
    shown["HostConfig"]["SecurityOpt"][1] = "seccomp=" + json.dumps(loose)
    assert profile.deviations(shown) == ["our seccomp profile"]


def test_nothing_a_function_says_is_in_the_command():
    """PROMISES 81: a container is started before it is known whom it will serve; handler, names and values come over the link."""
    parameters = set(inspect.signature(profile.create_config).parameters)
    assert parameters == {
        "image", "owner", "runtime", "class_mb", "uid", "mode", "socket_name", "limits", "folders", "oci_runtime",
    }  # fmt: skip
    asked = config("fast")
    assert [*asked["Entrypoint"], *asked["Cmd"]] == ["/usr/bin/python3", "-I", "-S", "/opt/hearth/supervisor.py", "fast:hearth-x"]


def test_init_is_the_first_process_over_the_fast_link_alone():
    assert config("fast")["HostConfig"]["Init"] is True
    assert config("stdio")["HostConfig"]["Init"] is False
    assert config("stdio")["Cmd"] == ["stdio"]
    assert config("fast")["Cmd"] == ["fast:hearth-x"]


def test_code_is_the_only_folder_from_which_something_runs():
    mounts = profile.tmpfs(folders(128), UID)
    assert [path for path, options in mounts.items() if "noexec" not in options.split(",")] == ["/code"]


GOOD_STATUS = (
    "Name:\tpython3\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t7 \nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n"
    "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
)


def test_the_view_from_inside():
    assert profile.inside_deviations(GOOD_STATUS) == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("CapEff:\t0000000000000000", "CapEff:\t00000000a80425fb"), ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000001"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0"), ("Seccomp:\t2", "Seccomp:\t0"), ("Uid:\t7\t7", "Uid:\t7\t0"),
        ("Gid:\t7\t7", "Gid:\t0\t7"), ("Groups:\t7 ", "Groups:\t7 27"), ("Seccomp:\t2\n", ""), ("CapEff:\t0000000000000000\n", ""),
    ],
)  # fmt: skip
def test_each_thing_wrong_inside_is_seen(good, bad):
    assert good in GOOD_STATUS
    assert profile.inside_deviations(GOOD_STATUS.replace(good, bad)) != []


@pytest.mark.parametrize("wrong", [{"Volumes": {"/data": {}}}, {"ExposedPorts": {"80/tcp": {}}}, {"OnBuild": ["RUN x"]}])
def test_images_that_ask_for_more_are_refused(wrong):
    assert profile.image_deviations({"Config": {"User": "root", "Entrypoint": ["x"], "WorkingDir": "/proc/self/fd/8"}}) == []
    assert profile.image_deviations({"Config": wrong}) != []


# -- on the real engine: what the filter refuses, and that the same probe succeeds without it

#: Each call with arguments under which it succeeds, or fails for another reason, where no filter stands in the way.
PROBE = """
import ctypes, errno, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = dict(
    bpf=321, io_uring_setup=425, keyctl=250, add_key=248, request_key=249, ptrace=101, userfaultfd=323, perf_event_open=298,
    mount=165, unshare=272, setns=308, process_vm_readv=310, process_vm_writev=311, pidfd_getfd=438, kcmp=312, open_by_handle_at=304,
    clone3=435, clone=56, pivot_root=155, kexec_load=246, init_module=175, quotactl=179, fsopen=430, open_tree=428, move_mount=429,
    swapon=167, reboot=169, settimeofday=164, shmget=29, msgget=68, mq_open=240, name_to_handle_at=303,
)
def call(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(NUMBERS[name]), *(ctypes.c_long(each) for each in arguments))
    return "ok" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")
def family(number, kind=socket.SOCK_STREAM):
    try:
        socket.socket(number, kind).close()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, "?")
pid, NEWUSER = os.getpid(), 0x10000000
child = libc.syscall(ctypes.c_long(56), ctypes.c_long(NEWUSER | 17), 0, 0, 0, 0)
if child == 0:
    os._exit(0)
cloned = "ok" if child > 0 else errno.errorcode.get(ctypes.get_errno(), "?")
found = {
    "clone(NEWUSER)": cloned, "AF_ALG": family(38, socket.SOCK_SEQPACKET), "AF_VSOCK": family(40), "AF_PACKET": family(17, socket.SOCK_RAW),
    "AF_UNIX": family(1), "AF_INET": family(2), "AF_INET6": family(10), "AF_NETLINK": family(16, socket.SOCK_RAW),
    "bpf": call("bpf", 0, 0, 0), "io_uring_setup": call("io_uring_setup", 1, 0), "keyctl": call("keyctl", 0, -3, 0),
    "add_key": call("add_key", 0, 0, 0, 0, 0), "request_key": call("request_key", 0, 0, 0, 0), "ptrace": call("ptrace", 16, 0, 0, 0),
    "userfaultfd": call("userfaultfd", 1), "perf_event_open": call("perf_event_open", 0, 0, -1, -1, 0),
    "mount": call("mount", 0, 0, 0, 0, 0), "unshare": call("unshare", NEWUSER), "setns": call("setns", -1, 0),
    "process_vm_readv": call("process_vm_readv", pid, 0, 0, 0, 0, 0), "process_vm_writev": call("process_vm_writev", pid, 0, 0, 0, 0, 0),
    "pidfd_getfd": call("pidfd_getfd", -1, 0, 0), "kcmp": call("kcmp", pid, pid, 0, 0, 0),
    "open_by_handle_at": call("open_by_handle_at", -1, 0, 0), "name_to_handle_at": call("name_to_handle_at", -1, 0, 0, 0, 0),
    "clone3": call("clone3", 0, 0), "fsopen": call("fsopen", 0, 0), "open_tree": call("open_tree", -1, 0, 0),
    "move_mount": call("move_mount", -1, 0, -1, 0, 0), "pivot_root": call("pivot_root", 0, 0),
    "shmget": call("shmget", 0, 4096, 0o600), "msgget": call("msgget", 0, 0o600), "mq_open": call("mq_open", 0, 0, 0, 0),
}
print(json.dumps(found))
"""

ALLOWED = {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
ABSENT = {"clone3", "io_uring_setup"}  # programs that try these fall back when told that there is no such thing


@pytest.fixture
def probe(api, built_image, platform):
    """What each call answers inside, under the profile's options or under others."""

    def run(source: str = PROBE, **changes):
        asked = config("stdio", image=built_image)
        asked["Entrypoint"], asked["Cmd"] = ["/usr/bin/python3", "-I", "-c", source], []
        asked["Labels"] = asked["Labels"] | {"hearth.platform": platform, "hearth.test-deviates": "a probe"}
        asked["HostConfig"] = asked["HostConfig"] | changes
        with api.container(asked) as container:
            status, printed = api.run(container, b"")
        assert status == 0, printed
        return json.loads(printed)

    return run


def kernel_refuses_user_namespaces() -> bool:
    """To anybody here, root included: below a chroot, or where the host has none."""
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode != 0


@pytest.mark.docker
def test_the_filter_refuses_what_no_function_needs_and_bites(probe):
    """Under our filter every probe is refused; with no filter at all most succeed or fail for reasons of their own."""
    filtered = probe()
    assert {name for name, answer in filtered.items() if answer == "ok"} == ALLOWED
    assert {name for name, answer in filtered.items() if answer == "ENOSYS"} == ABSENT
    refused = set(filtered) - ALLOWED - ABSENT
    assert {filtered[name] for name in refused} == {"EPERM"}
    loose = probe(SecurityOpt=["no-new-privileges", "seccomp=unconfined"])
    bitten = {name for name in refused if loose[name] != "EPERM"}
    wanted = {
        "AF_ALG", "AF_VSOCK", "keyctl", "userfaultfd", "unshare", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
        "clone(NEWUSER)", "ptrace",
    }  # fmt: skip
    if kernel_refuses_user_namespaces():
        wanted -= {"unshare", "clone(NEWUSER)"}
    assert wanted <= bitten


@pytest.mark.docker
def test_the_watch_over_every_container_sees_one_that_differs(probe):
    """What looks at each container that the tests make, and excuses this one, is asked here not to."""
    watch = ProfileWatch(excused_by="nothing")
    assert watch.start()
    try:
        wait = "import time; time.sleep(1); print(1)"
        probe(wait, SecurityOpt=["no-new-privileges"], CapDrop=[], CapAdd=["NET_RAW"])
        said = "\n".join(watch.wrong)
        assert "CapDrop ALL" in said
        assert "no CapAdd" in said
        assert "our seccomp profile" in said
        assert "inside, CapBnd is 0" in said
        before = len(watch.wrong)
        probe(wait, SecurityOpt=["seccomp=unconfined"])
        said = "\n".join(watch.wrong[before:])
        assert "no-new-privileges" in said
        assert "inside, NoNewPrivs is 1" in said
        assert "inside, Seccomp is 2" in said
        assert watch.seen_inside >= 2
    finally:
        watch.stop()


UNWRITABLE = """
import json, os
opened = []
for top in ("/proc", "/sys", "/dev"):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not (top == "/proc" and name.isdigit()) and name not in ("task", "shm")]
        for name in files:
            path = os.path.join(folder, name)
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                opened.append(path)
            except OSError: pass
print(json.dumps(sorted(opened)))
"""

#: Devices without a memory of their own, and the process's own descriptors.
WRITABLE_FILES = {
    "/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero", "/dev/ptmx", "/dev/pts/ptmx",
    "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/console",
}  # fmt: skip


@pytest.mark.docker
def test_no_file_of_the_kernels_can_be_written(probe):
    found = set(probe(UNWRITABLE))
    own = ("/proc/self/", "/proc/thread-self/", "/dev/fd/")
    masked = set(profile.MASKED)  # the null device stands in their place
    assert {path for path in found if not path.startswith(own)} - masked <= WRITABLE_FILES


WRITABLE = """
import json, os
found = []
for folder, folders, files in os.walk("/"):
    if folder.startswith(("/proc", "/sys")):
        folders.clear()
        continue
    try:
        with open(os.path.join(folder, "probe-of-ours"), "w"):
            found.append(folder)
    except OSError:
        pass
print(json.dumps(sorted(found)))
"""


@pytest.mark.docker
def test_nothing_can_be_written_but_the_four_folders(probe):
    assert probe(WRITABLE) == ["/code", "/dev/shm", "/output", "/tmp"]


FULL = """
import errno, json, os
answers = {}
for path in ("/tmp", "/output", "/dev/shm"):
    try:
        with open(path + "/big", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError as error:
        answers[path + " bytes"] = errno.errorcode[error.errno]
    os.unlink(path + "/big")
    try:
        for number in range(1_000_000):
            open(f"{path}/{number}", "w").close()
    except OSError as error:
        answers[path + " inodes"] = errno.errorcode[error.errno]
    for name in os.listdir(path):
        os.unlink(f"{path}/{name}")
try:
    with open("/tmp/sparse", "wb") as file:
        file.truncate(1 << 40)
except OSError as error:
    answers["sparse"] = errno.errorcode[error.errno]
print(json.dumps(answers))
"""


@pytest.mark.docker
def test_full_folders_say_so(probe):
    answers = probe(FULL)
    assert answers.pop("sparse") == "EFBIG"
    assert set(answers.values()) == {"ENOSPC"}
    assert len(answers) == 6


NETWORK = """
import json, os, socket, time
def attempt(family, address):
    began = time.monotonic()
    with socket.socket(family) as probe:
        probe.settimeout(3)
        try:
            probe.connect(address)
            return "connected"
        except OSError:
            return time.monotonic() - began
def lookup():
    began = time.monotonic()
    try:
        socket.getaddrinfo("example.com", 80)
        return "found"
    except OSError:
        return time.monotonic() - began
print(json.dumps({
    "metadata": attempt(socket.AF_INET, ("169.254.169.254", 80)), "private": attempt(socket.AF_INET, ("10.0.0.1", 22)),
    "broker": attempt(socket.AF_INET, ("127.0.0.1", 4222)), "six": attempt(socket.AF_INET6, ("2001:db8::1", 80)),
    "name": lookup(), "interfaces": [name for _, name in socket.if_nameindex()], "resolver": open("/etc/resolv.conf").read(),
}))
"""


@pytest.mark.docker
def test_there_is_no_network_and_that_is_told_at_once(probe):
    found = probe(NETWORK)
    assert found.pop("interfaces") == ["lo"]
    assert "127.0.0.1" in found.pop("resolver")
    assert all(isinstance(seconds, float) and seconds < 1 for seconds in found.values()), found
