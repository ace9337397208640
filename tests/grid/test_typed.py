"""Values in error messages."""

from overpaint.grid.typed import bare, shown


def test_long_values_are_truncated_visibly():
    assert shown("x" * 300).endswith("xx …") and bare("x" * 300).endswith("xx …")
    assert bare("x" * 200) == "x" * 200 and bare("it's\n") == "it's\\n"
    assert (shown(None), shown(True), shown("a")) == ("null", "true", "'a'")
