"""Notes are counted, and the first ten named."""

from __future__ import annotations

from pipeline.notes import NoteList


def test_notes_are_counted_with_and_without_names() -> None:
    notes = NoteList()
    assert notes.to_dict() == {}
    for number in range(11):
        notes.add("odd images", f"image {number}")
    notes.add("odd set")
    named, plain = notes.to_dict().items()
    assert plain == ("odd set", 1) and named[1] == 11 and named[0].endswith("image 9, ...)")
