"""The repository besides its code: one version, a valid changelog, and workflows and hooks that match the Makefile."""

import re
import subprocess
from datetime import date

import pytest
import yaml

import sam3_engine
from testbed.plugin import REPOSITORY

VERSION_FILES = {"CHANGELOG.md", "sam3_engine/__init__.py"}
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").iterdir())
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").iterdir())
CI = REPOSITORY / ".github" / "workflows" / "ci.yml"
HOOKS = REPOSITORY / ".pre-commit-config.yaml"


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def files():
    """Return the files in the checkout that git does not ignore, as relative paths."""
    listed = ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (REPOSITORY / name).is_file()]


def commands(path):
    """Return the shell commands of a workflow's steps, by job."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}


def releases():
    """Return the released versions in the changelog and their dates, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)


def test_the_newest_release_in_the_changelog_matches_the_version():
    assert releases()[0][0] == sam3_engine.__version__


def test_the_version_is_defined_in_one_place():
    spelled = re.compile(rf"(?<![\d.]){re.escape(sam3_engine.__version__)}(?!\.?\d)".encode())
    found = {name for name in files() if spelled.search((REPOSITORY / name).read_bytes())}
    assert found == VERSION_FILES


def test_the_changelog_follows_its_format():
    text = read("CHANGELOG.md")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["[Unreleased]", *(f"[{version}] - {day}" for version, day in releases())]
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= CHANGES
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases()]
    days = [date.fromisoformat(day) for _, day in releases()]
    assert numbers == sorted(set(numbers), reverse=True)
    assert days == sorted(days, reverse=True)


@pytest.mark.parametrize("path", [*WORKFLOWS, *FORMS, HOOKS], ids=lambda path: path.name)
def test_yaml_files_are_valid(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_make_targets_and_files_in_the_workflow_exist():
    targets = set(re.findall(r"^([\w./$()-]+):", read("Makefile").replace("$(VENV)", ".venv"), re.MULTILINE))
    text = "\n".join(commands(CI).values())
    named = set(re.findall(r"\bmake (\S+)", text))
    assert named == {".venv/ready", "lint", "test"}
    assert named <= targets
    used = re.findall(r"[\w/.-]+\.(?:py|txt)\b", text)
    assert len(used) >= 6
    assert [name for name in used if not (REPOSITORY / name).is_file()] == []


def test_windows_installs_what_make_installs():
    install = re.compile(r"-m pip install (.+)")
    by_make = set(install.findall(read("Makefile"))) - {"-r requirements-dev.txt -r sam3_batch/requirements.txt"}
    on_windows = set(install.findall(commands(CI)["windows"])) - {"-r requirements-dev.txt"}
    assert on_windows == by_make
    assert len(by_make) == 3


def test_hooks_run_the_tools_of_make_lint():
    (repository,) = yaml.safe_load(HOOKS.read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.+\n)+)", read("Makefile"), re.MULTILINE)[1]
    tool = re.compile(r"-m ((?:ruff )?\w+)")
    hooked = [tool.search(hook["entry"])[1] for hook in repository["hooks"]]
    assert sorted(hooked) == sorted(tool.findall(lint))
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in repository["hooks"])


def test_files_named_in_contributing_exist():
    named = re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|ya?ml|md|txt))`", read("CONTRIBUTING.md"))
    folders = ("", "tests/", "sam3_engine/")
    assert len(named) > 20
    assert [name for name in named if not any((REPOSITORY / folder / name).is_file() for folder in folders)] == []
