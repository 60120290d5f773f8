"""Tables as text."""

from pyro_vaes.tables import text_table


def test_heads_and_values_stand_in_columns_of_the_widths_asked_for() -> None:
    lines = text_table("site:<8 | active (Burda):>16 | share:>8.1%", [("z_1", 3, 0.25), ("all", 12, 1.0)])
    assert lines == [
        "site      active (Burda)   share",
        "z_1                    3   25.0%",
        "all                   12  100.0%",
    ]


def test_text_needs_no_number_format_and_none_leaves_its_place_empty() -> None:
    lines = text_table("a:>6.2f | b:>6d | c:>6.2f", [("nan", None, 1.0), (2.0, "-", None)])
    assert lines[1:] == ["   nan        1.00", "  2.00     -"]
