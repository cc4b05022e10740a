"""The how-to guides, the tutorial and the topics run as they stand, page by page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from .pages import DOCS, LINK, Terminal, toctree

if TYPE_CHECKING:
    from pathlib import Path

# A folder that is not there has no pages.
FOLDERS = [DOCS / name for name in ("howto", "tutorial", "topics") if (DOCS / name).is_dir()]
PAGES = [path for folder in FOLDERS for path in sorted(folder.glob("*.md")) if path.stem != "index"]
# The tutorial's go on from one another: test_tutorial.
ALONE = [page for page in PAGES if page.parent.name != "tutorial"]


@pytest.mark.parametrize("page", ALONE, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_runs_as_it_stands(page: Path, terminal: Terminal) -> None:
    terminal.follow(page)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_index_lists_the_pages_and_their_links_lead_somewhere(folder: Path) -> None:
    pages = set(folder.glob("*.md"))
    listed = toctree(folder / "index.md")
    assert {f"{name}.md" for name in [*listed, "index"]} == {page.name for page in pages}
    for page in pages:
        for link in LINK.findall(page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            assert target.is_file(), f"{page.name} links to {link}"
            if not anchor:
                continue
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
            }
            assert anchor in slugs, f"{page.name} links to {link}"
