"""Links between the pages of the repository, in a checkout and in the package for the Ikomia HUB."""

import re
import zipfile

import pytest
from support import pages

from testbed.plugin import REPOSITORY

PAGES = pages.all_pages()


@pytest.fixture(scope="module")
def packaged(package):
    """Return the relative paths of the files and folders in the package."""
    with zipfile.ZipFile(package) as archive:
        return {name.rstrip("/") for name in archive.namelist()}


@pytest.mark.parametrize("page", PAGES)
def test_links_are_not_broken(page):
    assert pages.broken_links(page, lambda path: (REPOSITORY / path).exists()) == []


def test_links_of_packaged_pages_stay_inside_the_package(packaged):
    shipped = [page for page in PAGES if page in packaged]
    assert {"README.md", "docs/README.md", "docs/development.md", "sam3_engine/README.md"} <= set(shipped)
    broken = {page: pages.broken_links(page, lambda path: path in packaged) for page in shipped}
    assert {page: links for page, links in broken.items() if links} == {}


def test_every_docs_page_is_linked_from_the_readme_and_the_index():
    present = {page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"}
    assert len(present) > 6
    assert present <= set(pages.links(pages.read("README.md")))
    assert {page.removeprefix("docs/") for page in present} <= set(pages.links(pages.read("docs/README.md")))


def test_every_example_is_linked_from_the_readme_and_the_index():
    present = {f"examples/{path.name}" for path in (REPOSITORY / "examples").glob("*.py")}
    assert len(present) > 5
    assert present <= set(pages.links(pages.read("README.md")))
    assert {f"../{example}" for example in present} <= set(pages.links(pages.read("docs/README.md")))


def test_every_picture_is_used():
    shown = {link.rpartition("/")[2] for page in PAGES for link in pages.links(pages.read(page))}
    named = {"scene.png"}  # the input of the README's first example
    assert {path.name for path in (REPOSITORY / "images").iterdir()} <= shown | named


def test_links_and_anchors_follow_github():
    text = '# Some `code`, and more\n[a](b.md#c) ![d](e.png) <a href="f">\n```\n# no heading\n[g](h)\n```\n[`i`](j)'
    assert pages.links(text) == ["b.md#c", "e.png", "j", "f"]
    assert pages.anchors(text) == ["some-code-and-more"]
    assert re.findall("no heading", pages.sections(text)["Some `code`, and more"])
