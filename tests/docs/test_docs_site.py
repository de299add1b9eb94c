"""The site: every page is in it, every public name is in its reference with one entry an argument. CI builds
it strictly (stage site).
"""

import importlib
import inspect
import re

import pages
import pytest

DOCS = pages.ROOT / "docs"
CONFIG = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
PUBLIC = ("revstep", "revstep.hf", "revstep.lm", "revstep.ode", "revstep.plan", "revstep.verify")
#: Sections of a docstring with an entry a line; and entries of several names, or with another entry behind
#: them.
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Warns):")
SEVERAL = re.compile(r"^    \w+(, \w+)+:|^    \w+: .*\. (?!Default|None)\w+(, \w+)*: ")


def public():
    """(name, object) of everything public that can be documented, each once."""
    found = {}
    for module in map(importlib.import_module, PUBLIC):
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value):
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return list(found.values())


def documented():
    """Objects that the reference names, and modules of which it shows all."""
    names = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    objects = set()
    for name in names:
        try:
            objects.update(map(id, vars(importlib.import_module(name)).values()))
        except ModuleNotFoundError:
            module, _, attribute = name.rpartition(".")
            objects.add(id(getattr(importlib.import_module(module), attribute)))
    return objects


def members(name, value):
    """The object itself, and of a class its public methods and properties."""
    yield name, value
    if inspect.isclass(value):
        yield from (
            (f"{name}.{n}", v)
            for n, v in vars(value).items()
            if not n.startswith("_") and (inspect.isfunction(v) or isinstance(v, property))
        )


def faults(text):
    """Lines of a docstring in which an argument has to share an entry with another."""
    found, inside = [], False
    for line in text.splitlines():
        if SECTION.match(line):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and SEVERAL.match(line):
            found.append(line.strip())
    return found


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", CONFIG))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert (
        listed <= there
        and {p for p in there - listed if not p.startswith(("decisions/", "notes/", "benchmarks/"))} == set()
    )


def test_every_public_name_is_in_the_reference():
    known = documented()
    assert [name for name, value in public() if id(value) not in known] == []


def test_public_docstrings_have_one_entry_an_argument():
    undocumented, several = [], {}
    for name, value in (member for entry in public() for member in members(*entry)):
        text = inspect.getdoc(value)
        if not text:
            undocumented.append(name)
        elif found := faults(text):
            several[name] = found
    assert (undocumented, several) == ([], {})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A function.\n\nArgs:\n    x: one. y: two.\n", 1),
        ("A function.\n\nArgs:\n    x, y: both.\n", 1),
        ("A function.\n\nRaises:\n    A: one. B: two.\n    C, D: three.\n", 2),
        ("A function.\n\nArgs:\n    x: one, as in a: b.\n    y: two.\n\nText with x, y: both.\n", 0),
    ],
)
def test_shared_entries_are_found(text, expected):
    assert len(faults(text)) == expected


def test_faults_of_a_built_site_are_found(tmp_path, monkeypatch):
    pytest.importorskip("PIL", reason="comes with matplotlib")
    monkeypatch.syspath_prepend(str(pages.ROOT / ".ci"))
    site = pages.load(pages.ROOT / ".ci" / "site.py")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text(
        '<h1 id="here">A</h1><a href="../">up</a><a href="#here">here</a><a'
        ' href="https://example.com">away</a>'
    )
    first = tmp_path / "index.html"
    first.write_text('<a href="a/">a</a><a href="a/#here">here</a>')
    assert site.broken(tmp_path) == []
    first.write_text('<a href="b/">b</a><a href="a/#gone">gone</a><img src="none.png">')
    assert [fault.rpartition(": ")[2] for fault in site.broken(tmp_path)] == [
        "b/ is not there",
        "a/#gone has no such place",
        "none.png is not there",
    ]
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text(
        '{"docs": [{"title": "Words", "text": "about a carry"}]}'
    )
    assert site.found_by_search(tmp_path, ("carry", "checksum")) == ["the search does not find 'checksum'"]


def test_the_commands_of_the_tutorial():
    readme = pages.load(pages.ROOT / ".ci" / "readme.py")
    found = readme.steps((DOCS / "tutorials" / "fine-tune.md").read_text(encoding="utf-8"))
    assert (
        len(found) == 5
        and "revstep finetune" in found[2]
        and "steps docs/tutorials/fine-tune.md" in (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    )
    for wrong in ("no step", "<!-- step: a -->\n\ntext\n", "<!-- step: a -->\n```python\nx\n```\n"):
        with pytest.raises(ValueError, match="marks of steps"):
            readme.steps(wrong)


def test_the_options_of_a_stack_are_shown_by_name():
    griffe = pytest.importorskip("griffe", reason="comes with revstep[docs]")
    extension = pages.load(DOCS / "griffe_docstrings.py").Docstrings
    package = griffe.load(
        "revstep", search_paths=[str(pages.ROOT / "python")], extensions=griffe.load_extensions(extension)
    )
    for name in ("stack._stack.ReversibleStack.__init__", "hf._convert.convert"):
        assert {"keep", "checks", "memory_budget"} <= {p.name for p in package[name].parameters}, name


def test_roles_become_code():
    griffe = pytest.importorskip("griffe", reason="comes with revstep[docs]")
    plain = pages.load(DOCS / "griffe_docstrings.py").plain
    assert (
        griffe
        and plain("a :class:`~revstep.stack.Report`, :mod:`.tape` and `x`: :func:`f`")
        == "a `Report`, `tape` and `x`: `f`"
    )


def test_the_pictures_of_the_readme_are_those_of_the_site():
    """Every picture of the README is on a page of the site too, so that they cannot differ."""
    shown = set()
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            shown.add((page.parent / target).resolve())
    readme = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (DOCS.parent / "README.md").read_text(encoding="utf-8"))
    assert readme and {(DOCS.parent / target).resolve() for target in readme} <= shown
    assert all((DOCS.parent / target).is_file() for target in readme)
