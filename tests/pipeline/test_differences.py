"""The table of differing fields: each field once, long values short, lists by entry or as one."""

from __future__ import annotations

from pipeline.differences import differences, to_table


def test_fields_are_named_by_their_dotted_key_and_entries_by_their_number() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": [1], "same": {"x": [0]}, "gone": True}
    new = {"a": {"b": 1, "c": [1, 3]}, "d": [1, 2], "same": {"x": [0]}, "added": None}
    assert list(differences(old, new)) == [("a.c[1]", 2, 3), ("d", [1], [1, 2]), ("gone", True, None)]
    assert list(differences(old, old)) == []
    assert list(differences({"slice": None}, {"slice": {"size": 64, "x": None}})) == [("slice.size", None, 64)]


def test_the_table_has_three_columns_and_short_values() -> None:
    classes = [{"id": number, "name": f"class {number}"} for number in range(80)]
    rows = [("segment.mode", "fast", "exact"), ("model.sha256", "0" * 64, "1" * 64), ("model.categories", classes, [])]
    assert to_table(rows, "in the run").splitlines() == [
        "                    in the run                            asked for",
        '  segment.mode      "fast"                                "exact"',
        f'  model.sha256      "{"0" * 32}...  "{"1" * 32}...',
        '  model.categories  80 entries: [{"id": 0, "name": "c...  []',
    ]


def test_of_many_rows_the_first_are_shown() -> None:
    lines = to_table([(f"key{number}", 0, 1) for number in range(1030)], "there").splitlines()
    assert len(lines) == 22 and lines[-1] == "  and 1,010 more"
