"""The Markdown pages of the repository: their Python blocks, tables, headings and links."""

import re
import subprocess
from pathlib import Path

from testbed.plugin import REPOSITORY

_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def all_pages():
    """Return the paths of all Markdown pages in the checkout, relative to it, as strings."""
    listed = ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({name for name in names if (REPOSITORY / name).is_file()})


def read(page):
    """Return the text of a page."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def sections(text):
    """Return a dict from each heading, of any level, to the text under it, without its subsections."""
    parts = re.split(r"^#+ (.+)$", _without_hashes_in_code(text), flags=re.MULTILINE)
    return {heading: body.replace("\0", "#") for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def python_blocks(page):
    """Yield the heading and the code of each Python block of a page."""
    for heading, body in sections(read(page)).items():
        for code in re.findall(r"^```python\n(.*?)^```$", body, re.DOTALL | re.MULTILINE):
            yield heading, code


def anchors(text):
    """Return the anchors that GitHub generates for a page's headings."""
    found = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]


def links(text):
    """Return the targets of a page's links and pictures, in Markdown or HTML."""
    prose = re.sub(r"`[^`\n]*`(?!\])", "", _FENCED.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:href|src)="([^"]+)"', prose)


def broken_links(page, exists):
    """Return the relative links of a page that are broken.

    Args:
        page: path of the page in the checkout.
        exists: function that returns whether a path, relative to the checkout, exists.
    """
    broken = []
    for link in links(read(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = _normal(Path(page).parent / file) if file else page
        if not exists(target) or (anchor and anchor not in anchors(read(target))):
            broken.append(link)
    return broken


def _normal(path):
    resolved = (REPOSITORY / path).resolve()
    return resolved.relative_to(REPOSITORY).as_posix()


def _without_hashes_in_code(text):
    return _FENCED.sub(lambda block: block[0].replace("#", "\0"), text)
