"""Runtime images without a registry: what they are made of, and that they are made once."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from hearth_cli.local import images
from hearth_cli.local.engine_api import EngineApi

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with this one's recipe and a runtime of two files."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy/images", root / "deploy/images")
    runtime = root / "runtimes/python"
    (runtime / "tests").mkdir(parents=True)
    (runtime / "supervisor.py").write_text("print('hello from', __file__)\n")
    (runtime / "tests/test_it.py").write_text("never in the image\n")
    return root


def test_the_name_follows_what_the_image_is_made_of(checkout):
    first = images.reference(checkout)
    assert first.startswith("hearth-runtime-python:")
    (checkout / "runtimes/python/tests/test_it.py").write_text("changed\n")
    (checkout / "runtimes/python/notes.md").write_text("new\n")
    assert images.reference(checkout) == first, "tests and notes are not in it"
    (checkout / "runtimes/python/more.py").write_text("")
    second = images.reference(checkout)
    assert second != first
    with (checkout / "deploy/images/python.packages").open("a") as packages:
        packages.write("zstd\n")
    assert images.reference(checkout) not in (first, second)


DEB822 = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian.gpg

# a comment
Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.example/tools
Suites: nodistro
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sources.list",
            "# x\ndeb http://mirror.example/debian bookworm main\ndeb-src http://mirror.example/debian bookworm main\n",
            ["deb http://mirror.example/debian bookworm main"],
        ),
        (
            "sources.list.d/debian.sources",
            DEB822,
            [
                "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian bookworm main",
                "deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian bookworm-updates main",
                "deb http://mirror.example/debian-security bookworm-security main",
            ],
        ),
        ("sources.list", "deb http://mirror.example/ubuntu noble main\n", []),
        ("sources.list", "deb http://mirror.example/debian-security bookworm-security main\n", []),
        ("nothing", "", []),
    ],
    ids=["one line", "stanzas", "another release", "only the updates of this one", "none"],
)
def test_packages_come_from_where_this_machine_takes_them(tmp_path, name, text, expected):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert images.mirrors(tmp_path) == expected


@pytest.fixture
def built(checkout):
    """Builds in the checkout; what was built is removed at the end. The base is shared with this checkout's own."""
    cache = ROOT / ".hearth/cache/images"
    images.build(ROOT, cache, lambda step: None)
    made = []

    def build(**options) -> images.Built:
        made.append(images.build(checkout, cache, lambda step: None, **options))
        return made[-1]

    yield build
    for reference in {each.reference for each in made}:
        if EngineApi().image(reference) is not None:
            EngineApi().remove_image(reference)


@pytest.mark.docker
def test_an_image_is_made_once_and_holds_the_runtime_compiled(built, checkout):
    first = built()
    assert [name for name, _ in first.steps] == ["adding the runtime's own files"]
    assert images.present(checkout)
    assert built().steps == ()
    api = EngineApi()
    look = "import json, os; print(json.dumps([sorted(os.listdir('/opt/hearth')), os.listdir('/opt/hearth/__pycache__'), os.getuid()]))"
    config = {
        "Image": first.reference, "Cmd": ["-I", "-S", "-c", look], "AttachStdout": True, "OpenStdin": True, "StdinOnce": True,
        "HostConfig": {"NetworkMode": "none"},
    }  # fmt: skip
    with api.container(config) as container:
        status, printed = api.run(container, b"")
    assert status == 0, printed
    files, compiled, uid = json.loads(printed)
    assert files == ["__pycache__", "supervisor.py"]
    assert compiled == ["supervisor.cpython-311.pyc"]
    assert uid == 65534


@pytest.mark.docker
def test_of_two_builders_at_once_one_builds(built):
    done = []
    threads = [threading.Thread(target=lambda: done.append(built())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each.steps) for each in done) == [0, 1]


@pytest.mark.docker
def test_a_runtime_that_does_not_compile_is_told_with_what_python_said(built, checkout):
    (checkout / "runtimes/python/broken.py").write_text("def (:\n")
    with pytest.raises(images.ImageError, match="preparing hearth-runtime-python") as caught:
        built()
    assert "broken.py" in caught.value.detail
    assert not images.present(checkout)


def test_without_the_tool_its_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(images.ImageError, match="mmdebstrap") as caught:
        images._fetch_root(["python3"], tmp_path / "root.tar")
    assert caught.value.fix
