"""Pages: code runs, links resolve, generated parts are up to date, nothing names somebody's machine. Each
check rejects a wrong page.
"""

import re
import subprocess
import sys

import pages
import pytest
import stand_in

generate = pages.load(pages.ROOT / "docs" / "generate.py")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: str(p.relative_to(pages.ROOT)))
def test_links_resolve(page):
    assert pages.broken_links(page) == []


@pytest.mark.parametrize(
    "text",
    [
        "[x](nowhere.md)",
        "[x](docs/theory.md#no-such-heading)",
        "![x](docs/figures/none.png)",
        "[x](../outside.md)",
        "[x](#gone)",
    ],
)
def test_a_broken_link_is_found(text):
    assert len(pages.broken_links(pages.ROOT / "README.md", text)) == 1


def test_right_links_and_code_are_accepted():
    text = (
        "# A b, c\n[x](#a-b-c) [y](docs/theory.md#the-checksum) [z](https://example.com/a)"
        " `[q](r)`\n```\n[s](t)\n```\n"
    )
    assert pages.broken_links(pages.ROOT / "README.md", text) == []


def test_generated_pages_are_up_to_date():
    assert generate.stale(generate.pages()) == [], "run python docs/generate.py"


def test_a_stale_page_is_found(tmp_path):
    page = tmp_path / "schemes.md"
    assert generate.stale({page: "text"}) == [page]
    page.write_text(generate.schemes_page().replace("order", "odour", 1), encoding="utf-8")
    assert generate.stale({page: generate.schemes_page()}) == [page]
    page.write_text(generate.schemes_page(), encoding="utf-8")
    assert generate.stale({page: generate.schemes_page()}) == []


def test_every_scheme_has_a_section_and_a_row():
    from revstep.schemes import available

    readme, page = (
        (pages.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/schemes.md")
    )
    for cls in available().values():
        assert (
            f"\n## {cls.__name__}\n" in page
            and f"\n| `{cls.__name__}` |" in readme
            and cls.claims.source in page
        )


@pytest.mark.parametrize("marks", ["", "<!-- /schemes -->", "BEGIN END END"])
def test_generator_refuses_a_readme_without_its_markers(marks):
    with pytest.raises(ValueError, match="once each"):
        generate.with_table(marks.replace("BEGIN", generate.BEGIN).replace("END", generate.END))


def test_nothing_names_a_machine():
    folders = ("docs", ".ci", "python", "csrc", "tests")
    files = [*pages.ROOT.glob("*.*"), *(f for folder in folders for f in (pages.ROOT / folder).rglob("*"))]
    kinds = (".md", ".py", ".txt", ".toml", ".hpp", ".cpp", ".cu", ".cmake")
    # Whose wrong examples are wrong.
    texts = [
        f
        for f in files
        if f.is_file() and (f.suffix in kinds or f.parent.name == ".ci") and f.name != "test_docs_pages.py"
    ]
    assert len(texts) > 50
    assert {
        str(f.relative_to(pages.ROOT)): found
        for f in texts
        if (found := pages.forbidden(f.read_text(encoding="utf-8")))
    } == {}


@pytest.mark.parametrize(
    "text",
    [
        "see /home/me/x",
        "cd /mnt/here",
        "`/tmp/env/bin/python`",
        "https://index.example/simple",
        "pip install --index-url x",
    ],
)
def test_a_machine_name_is_found(text):
    assert pages.forbidden(text)


@pytest.mark.parametrize(
    "text",
    [
        "mktemp -d",
        "python/revstep/ops/x.py",
        "a/home/b",
        "https://arxiv.org/abs/2512.02056",
        "forward / backward",
    ],
)
def test_ordinary_text_is_accepted(text):
    assert pages.forbidden(text) == []


#: Pages of docs with Python code, all of which runs.
WITH_CODE = [
    p
    for p in sorted((pages.ROOT / "docs").rglob("*.md"))
    if pages.python_blocks(p.read_text(encoding="utf-8"))
]


def test_a_block_that_needs_what_is_not_installed_is_left_out():
    text = (
        "```python\na\n```\n<!-- needs: no_such_package -->\n```python\nb\n```\n<!-- needs: json"
        " -->\n```python\nc\n```\n"
    )
    assert pages.python_blocks(text) == ["a\n", "c\n"]


def test_what_a_block_needs_is_installed_with_the_tests():
    toml = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^test = \[(.*)\]", toml, re.M)[1]
    needed = {
        n for p in WITH_CODE for n in re.findall(r"<!-- needs: (\w+) -->", p.read_text(encoding="utf-8"))
    }
    assert "numba" in needed and all(f'"{name}' in extra for name in needed)


def run_blocks(text, folder):
    """All Python blocks of a page, in order, in one process of its own."""
    script = folder / "page.py"
    script.write_text("\n".join(pages.python_blocks(text)), encoding="utf-8")
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: p.name)
def test_the_code_of_the_page_runs(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    stand_in.for_page(text, tmp_path)
    run = run_blocks(text, tmp_path)
    assert run.returncode == 0, run.stderr


def test_the_guide_pages_have_code():
    blocks = {p.stem: len(pages.python_blocks(p.read_text(encoding="utf-8"))) for p in WITH_CODE}
    assert blocks["guide"] >= 6 and blocks["ode"] >= 8
    assert {"choosing-a-scheme", "bit-exactness", "energy-drift", "float-states", "orbit"} <= set(blocks)


def test_a_page_whose_code_is_wrong_is_found(tmp_path):
    text = (pages.ROOT / "docs" / "bit-exactness.md").read_text(encoding="utf-8")
    wrong = text.replace("slots[slot] -= increment", "slots[slot] += increment")
    assert wrong != text and "AssertionError" in run_blocks(wrong, tmp_path).stderr
