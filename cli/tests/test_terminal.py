"""What a command prints."""

import pytest

from hearth_cli import terminal
from hearth_cli.errors import CommandError, PortInUse


def test_an_error_is_its_sentence_and_its_mend(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_error(PortInUse("Port 8080 is used by another program.", fix="./hearth up --port 8081"))
    captured = capsys.readouterr()
    assert captured.err == "hearth: Port 8080 is used by another program.\n  mend it with: ./hearth up --port 8081\n"
    assert captured.out == ""


def test_a_function_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert terminal.plain("a\x1b[2Jb\r\n\ttext") == "a\\x1b[2Jb\\x0d\n\ttext"


def test_a_step_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.step("building") as step:
        step("part one")
    with pytest.raises(CommandError), terminal.step("failing"):
        raise CommandError("no")
    said = capsys.readouterr().err
    assert "✓ building (0.0 s)" in said
    assert "part one" in said
    assert "✗ failing" in said


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert terminal.table(("a", "long"), [("wide one", "x")]) == "a         long\nwide one  x"
