"""The waterfall."""

from hearth_cli.commands.trace import WIDTH, waterfall


def span(name: str, parent: str | None, start_s: float, duration_s: float) -> dict[str, object]:
    return {"span_id": name, "service": "gateway", "name": name, "parent": parent, "start": start_s, "duration": duration_s}


def test_children_stand_under_their_parents_on_one_axis() -> None:
    lines = waterfall(
        [span("run", "http", 1000.002, 0.006), span("http", None, 1000.0, 0.01), span("place", "http", 1000.001, 0.001)]
    )
    assert [line.split(":")[1].split()[0] for line in lines] == ["http", "place", "run"]
    assert lines[0].count("█") == WIDTH
    assert lines[1].startswith("  gateway")
    assert lines[2].index("█") > lines[1].index("█")
    assert lines[2].endswith("6.00 ms")


def test_a_span_whose_parent_is_missing_is_shown_nevertheless() -> None:
    assert len(waterfall([span("lost", "nobody", 1.0, 1)])) == 1


def test_what_comes_after_the_caller_has_left_does_not_stretch_the_axis() -> None:
    lines = waterfall([span("http", None, 1000.0, 0.01), span("store", "http", 1000.005, 0.9)])
    assert lines[0].count("█") == WIDTH
    assert "▸" in lines[1]
    assert lines[1].index("█") > lines[0].index("█")


def test_a_span_that_failed_says_so() -> None:
    assert waterfall([{**span("x", None, 1.0, 0), "error": "no"}])[0].endswith("failed")


def test_no_span_at_all() -> None:
    assert waterfall([]) == ["no span has arrived yet"]
