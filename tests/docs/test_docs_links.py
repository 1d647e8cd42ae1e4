"""The documents' links, file names and constants: each is there, and is what the sources say."""

import re
from pathlib import Path

import pytest

ROOT = next(
    folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists()
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path from the root, with or without a file at its end: tests/test_bits.py, csrc/isa/*.c, docs/.
PATH = re.compile(r"(?<![\w./-])(?:tests|csrc|selfattn|bench|docs)/[\w./*<>-]*")
# A file's name alone, anywhere: tests under tests/, the rest under any of the folders.
NAME = re.compile(r"(?<![\w./*<>-])\w[\w.]*\.(?:py|pyx|[ch]|def)\b")
# An identifier of the sources: of several words, or in capitals.
IDENTIFIER = re.compile(r"`(\w*_\w*|[A-Z][A-Z0-9]{2,})`")
FOLDERS = [ROOT / name for name in ("csrc", "selfattn", "tests", "bench")]
CITATION = re.compile(r"(?<![\w./-])(?:docs/\w+|[A-Z]{3,})\.md\b")
CONSTANT = re.compile(r"^\| `(\w+)` \| (\d+) \| `([\w./]+)` \|", re.MULTILINE)


def missing(text):
    """What the text names and nobody has."""
    for path in PATH.findall(text):
        pattern = re.sub(r"<\w+>", "*", path.rstrip(".")).rstrip("/")
        if not any(ROOT.glob(pattern)):
            yield path
    for name in NAME.findall(text):
        folders = [ROOT / "tests"] if name.startswith("test_") else FOLDERS
        if not any(any(folder.rglob(name)) for folder in folders) and not (ROOT / name).exists():
            yield name


def targets(page):
    """The relative links of a page, without their anchors."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    return [link.split("#")[0] for link in links if "://" not in link and link[0] != "#"]


@each_page
def test_links_lead_somewhere(page):
    assert [link for link in targets(page) if not (page.parent / link).exists()] == []


@each_page
def test_names_of_files(page):
    assert list(missing(page.read_text(encoding="utf-8"))) == []


def words_of_sources():
    """Every word of the files that are not documents."""
    kinds = {".py", ".pyx", ".pxd", ".pxi", ".c", ".h", ".def", ".toml"}
    files = [path for folder in FOLDERS for path in folder.rglob("*")] + [*ROOT.glob("*.*")]
    sources = [path for path in files if path.suffix in kinds and path.name != "_core.c"]
    return {word for path in sources for word in re.findall(r"\w+", path.read_text("utf-8"))}


def test_identifiers():
    """That documents name in backticks: constants, functions, options."""
    words = words_of_sources()
    gone = {
        (page.name, name)
        for page in PAGES
        for name in IDENTIFIER.findall(page.read_text(encoding="utf-8"))
        if name not in words
    }
    assert gone == set()


def test_names_that_are_nobodys_are_noticed():
    """The yardstick: of each kind one that is there, and one that is not."""
    there = (
        "`tests/support/oracle.py`, csrc/*.def csrc/simd/<isa>.h docs/ (test_bits.py) kv.h setup.py"
    )
    assert list(missing(there)) == []
    gone = "tests/gone.py csrc/isa/*.f csrc/isa/<isa>.h docs/gone/ test_gone.py gone.inc.h gone.py"
    assert sorted(missing(gone)) == sorted(gone.split())


def test_documents_that_sources_cite():
    """By a path from the root."""
    files = [path for folder in FOLDERS for path in folder.rglob("*")] + list(ROOT.glob("*.py"))
    wrong = []
    for path in files:
        if path.suffix not in {".py", ".pyx", ".pyi", ".c", ".h", ".def"}:
            continue
        if "_build" in path.parts or path.name == "_core.c":  # generated
            continue
        for cited in CITATION.findall(path.read_text(encoding="utf-8")):
            if not (ROOT / cited).exists():
                wrong.append((path.name, cited))
    assert wrong == []


def test_each_document_is_linked():
    """From the README or from the first page of docs/, so that a reader finds it."""
    readme, index = targets(ROOT / "README.md"), ROOT / "docs" / "index.md"
    linked = {*readme, *(f"docs/{target}" for target in targets(index))}
    pages = [page for page in PAGES[2:] if page != index]
    assert [page.name for page in pages if f"docs/{page.name}" not in linked] == []


def value_of(name, source):
    """An enum's constant: a number, or a power of two as 1 << n."""
    definitions = re.findall(rf"\b{name} = (\d+)(?: << (\d+))?[,\s]", source)
    assert len(definitions) == 1, (name, definitions)
    number, shift = definitions[0]
    return int(number) << int(shift or 0)


def test_constants():
    """Those of docs/bits.md, on which results' bits rest."""
    rows = CONSTANT.findall((ROOT / "docs" / "bits.md").read_text(encoding="utf-8"))
    assert len(rows) > 10
    for name, value, file in rows:
        assert value_of(name, (ROOT / file).read_text(encoding="utf-8")) == int(value), name
