"""docs/settings.md, made from the declarations of the settings; `test_settings_page.py` holds the page to them.

`python -m tests.policy.settings_page` writes it anew.
"""

from __future__ import annotations

from jobs.config.describe import to_markdown
from tests.paths import DOCS

PAGE = DOCS / "settings.md"

if __name__ == "__main__":
    PAGE.write_text(to_markdown())
