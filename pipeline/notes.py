"""Notes for the user: what a reader decided about entries of its input, counted, with the first ten named."""

from __future__ import annotations

from collections import Counter, defaultdict

NUM_NAMED = 10


class NoteList:
    """What a reader decided: kind of decision -> count, and the first ten entries that it was about."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, note: str, name: str = "") -> None:
        """Counts a decision; `name` says about which entry, such as "annotation 7"."""
        self._counts[note] += 1
        if name and len(self._names[note]) < NUM_NAMED:
            self._names[note].append(name)

    def to_dict(self) -> dict[str, int]:
        """Each note, with the entries named in brackets -> count."""
        named = {note: self._names[note] + ["..."] * (self._counts[note] > NUM_NAMED) for note in self._counts}
        return {
            f"{note} ({', '.join(named[note])})" if self._names[note] else note: count
            for note, count in self._counts.items()
        }
