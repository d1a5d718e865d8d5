"""Faults and notes of annotations: what a reader refuses and what it decided, counted, with the first ten named."""

from __future__ import annotations

from collections import Counter, defaultdict

from pipeline.dataset.types import AnnotationError

NUM_NAMED = 10
_LONGEST_VALUE = 60


class FaultList:
    """Faults for which annotations are refused: their number, and the first ten as sentences."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[str] = []

    def add(self, fault: str) -> None:
        """Counts a fault, which names the entry, its key and value, and what is allowed."""
        self.count += 1
        if len(self.named) < NUM_NAMED:
            self.named.append(fault)

    def refuse_if_any(self, where: str) -> None:
        """Raises AnnotationError with the file `where`, the first ten faults and the number of the others."""
        if not self.count:
            return
        more = f"; and {self.count - len(self.named):,} more" if self.count > len(self.named) else ""
        raise AnnotationError(f"{where}: {'; '.join(self.named)}{more}", tuple(self.named), self.count)


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
        """Each note, with the entries named in brackets -> count, as `AnnotatedSet.notes` has them."""
        named = {note: self._names[note] + ["..."] * (self._counts[note] > NUM_NAMED) for note in self._counts}
        return {
            f"{note} ({', '.join(named[note])})" if self._names[note] else note: count
            for note, count in self._counts.items()
        }


def shown(value: object) -> str:
    """A value for a message, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
