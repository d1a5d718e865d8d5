"""Faults of annotations: what a reader refuses, counted, with the first ten named."""

from __future__ import annotations

from pipeline.dataset.types import AnnotationError
from pipeline.notes import NUM_NAMED

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


def shown(value: object) -> str:
    """A value for a message, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
