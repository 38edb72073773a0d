"""The documentation is run, not trusted: every runnable block, every example, every link."""

from __future__ import annotations

import linecache
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", HOME / "CHANGELOG.md",
         *sorted((HOME / "docs").glob("*.md"))]
EXAMPLES = sorted((HOME / "examples").glob("*.py"))
RUNNABLE = re.compile(r"^```python runnable\n(.*?)^```$", re.M | re.S)
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
INLINE = re.compile(r"`selfloop ([a-z]+)\b")
TYPED = re.compile(r"^selfloop ([a-z]+)\b", re.M)
WITH_ROLE = ("README", "tutorial", "words", "samplers", "verifiers", "organizers", "losses",
             "engines", "gate-and-arms", "run-folder", "recipes", "proof")


def blocks(page: Path) -> list[str]:
    """The runnable blocks of a page, in order: together they are one program."""
    return RUNNABLE.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> set[str]:
    """The subcommands that a page names: in code spans, and typed at the start of a line."""
    typed = [name for block in FENCE.findall(text) for name in TYPED.findall(block)]
    return {*typed, *INLINE.findall(FENCE.sub("", text))}


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.strip().replace(" ", "-")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_runnable_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"page_{page.stem.replace('-', '_')}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    for number, text in enumerate(blocks(page)):
        where = f"<{page.name}, block {number + 1}>"
        # So that tracebacks show the line, and a component's source can be fingerprinted.
        linecache.cache[where] = (len(text), None, text.splitlines(keepends=True), where)
        exec(compile(text, where, "exec"), module.__dict__)


@pytest.mark.parametrize("name", WITH_ROLE)
def test_pages_that_promise_an_example_have_one(name):
    page = next(p for p in PAGES if p.stem == name)
    assert blocks(page), f"{page.name} has no runnable block"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in {slug(h) for h in headings}, f"{page.name}: no heading for {target}"


def test_every_docs_page_is_reachable_from_the_readme():
    linked = LINK.findall((HOME / "README.md").read_text(encoding="utf-8"))
    for page in sorted((HOME / "docs").glob("*.md")):
        assert f"docs/{page.name}" in linked, f"README.md does not link to docs/{page.name}"


def test_named_commands_exist():
    out = subprocess.run(
        [sys.executable, "-c", "from selfloop.cli import main; main()", "--help"],
        capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^[\s│|]*([a-z]+)\s{2,}\S", out, re.M))
    for page in PAGES:
        for name in commands(page.read_text(encoding="utf-8")):
            assert name in known, f"{page.name} names `selfloop {name}`, which --help does not"


def test_make_targets_exist():
    made = (HOME / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z]+)\b", page.read_text(encoding="utf-8"), re.M)
        for target in set(named):
            assert re.search(rf"^{target}:", made, re.M), f"{page.name}: make {target}"


def test_the_proof_that_is_told_is_the_one_that_is_stored(tmp_path):
    """Tables in the pages equal proof/table.md, and that follows from the stored answers."""
    import shutil

    from selfloop.proving import recompute

    home = Path(__file__).parent.parent
    told = (home / "proof" / "table.md").read_text()
    for page in ("README.md", "docs/proof.md"):
        assert told.strip() in (home / page).read_text(), page
    shutil.copytree(home / "proof", tmp_path / "proof")
    (tmp_path / "proof" / "table.md").unlink()
    recompute(tmp_path / "proof")
    assert (tmp_path / "proof" / "table.md").read_text() == told
