"""The waterfall."""

from hearth_cli.commands.trace import WIDTH, waterfall


def span(name: str, parent: str | None, start: float, duration: float) -> dict[str, object]:
    return {"id": name, "service": "gateway", "name": name, "parent": parent, "start": start, "duration": duration}


def test_children_stand_under_their_parents_on_one_axis() -> None:
    lines = waterfall([span("run", "http", 1000.002, 6), span("http", None, 1000.0, 10), span("place", "http", 1000.001, 1)])
    assert [line.split(":")[1].split()[0] for line in lines] == ["http", "place", "run"]
    assert lines[0].count("█") == WIDTH
    assert lines[1].startswith("  gateway")
    assert lines[2].index("█") > lines[1].index("█")
    assert lines[2].rstrip().endswith("6.00 ms")


def test_a_span_whose_parent_is_missing_is_shown_nevertheless() -> None:
    assert len(waterfall([span("lost", "nobody", 1.0, 1)])) == 1


def test_no_span_at_all() -> None:
    assert waterfall([]) == ["no span has arrived yet"]
