"""HTML page of a report: its parts as one template shows them, in one file that loads nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import resources

from pipeline.results.gallery import Gallery

_MAX_LISTED = 50  # photos that cannot be shown

Part = Mapping[str, object]
"""A part of the page, as the template takes it."""


@dataclass
class Page:
    """The parts of a page; None or empty where there is none.

    Attributes:
        unfinished: what is said of a run that is not sealed.
        run, errors, evaluation, training, labels: see `report`, `figures`, `training_report` and `label_report`.
        gallery: see `show`.
        data: what the page's script draws.
    """

    unfinished: str = ""
    run: Part | None = None
    errors: Part | None = None
    evaluation: Part | None = None
    training: Part | None = None
    labels: Part | None = None
    gallery: Part | None = field(default=None, init=False)
    data: str = field(default="", init=False)

    def show(self, gallery: Gallery, *, sides: Sequence[str], said: str, threshold: float | None = None) -> None:
        """Puts photos on the page.

        Args:
            sides: what the runs are called; none for a page of labels.
            said: how many of which photos are shown, and how they were chosen.
            threshold: the score from which errors are counted; None without ground truth.
        """
        self.gallery = {
            "said": said + (" More would make the file too large." if gallery.is_cut else ""),
            "unreadable": gallery.unreadable[:_MAX_LISTED],
            "num_unreadable": len(gallery.unreadable),
            "threshold": threshold,
            "sides": sides,
        }
        self.data = _script_json({"sides": sides, "threshold": threshold, "pictures": gallery.pictures})

    def render(self, title: str, day: date | None) -> str:
        """The page's HTML; the day stands behind the title."""
        from jinja2 import Environment

        sections = [
            (key, name)
            for key, name, is_shown in (
                ("training", "Training", self.training),
                ("errors", "Truth and prediction", self.errors),
                ("evaluation", "Evaluation", self.evaluation),
                ("failures", "Failures", self.run and self.run["failures"]),
                ("instances", "Instances", self.run),
                ("labels", "Labels", self.labels),
                ("pictures", "Pictures", self.gallery),
            )
            if is_shown
        ]
        text = resources.files("pipeline.results").joinpath("report.html.j2").read_text("utf-8")
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
        title = title if day is None else f"{title}, {day.day} {day:%B %Y}"
        return template.render(title=title, sections=sections, **vars(self))


def _script_json(value: object) -> str:
    """JSON in which no text can end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
