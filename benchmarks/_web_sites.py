"""Run by an interpreter that has Sphinx and MkDocs: `python _web_sites.py FOLDER`; makes web pages whose source is at hand.

The documentation in the source packages below is spread over the themes, each a site. A page is FOLDER/pages/THEME/NUMBER.html,
its label NUMBER.txt beside it: what the same document gives without a theme, for Sphinx by its builder of plain text, for
Markdown the page's own HTML without tags.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

PACKAGES = (
    *("flask==3.1.0", "werkzeug==3.1.3", "jinja2==3.1.5", "click==8.1.8", "sphinx==8.1.3"),
    *("mkdocs==1.6.1", "starlette==0.45.3", "attrs==24.3.0"),
)
SPHINX = (
    *("alabaster", "classic", "sphinxdoc", "nature", "bizstyle", "haiku", "agogo", "pyramid", "traditional"),
    *("furo", "sphinx_rtd_theme", "pydata_sphinx_theme", "sphinx_book_theme"),
)
MKDOCS = ("mkdocs", "readthedocs", "material")
LEAST_WORDS = 100
"""Of a label; less is an index of other pages."""


def sources(folder: Path, suffix: str) -> list[Path]:
    """The documents of the packages, in an order that is the same everywhere."""
    return sorted(path for path in folder.rglob(f"*{suffix}") if {"doc", "docs"} & set(path.relative_to(folder).parts))


def download(folder: Path) -> None:
    folder.mkdir(parents=True)
    for package in PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", package]
        subprocess.run([*command, "--dest", str(folder)], check=True, stdout=sys.stderr)
    for archive in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")


def sphinx(found: list[Path], theme: str, work: Path) -> list[tuple[str, str]]:
    """(page, label) of each document."""
    from sphinx.application import Sphinx

    for number, path in enumerate(found):
        shutil.copy(path, work / f"{number}.rst")
    (work / "index.rst").write_text("Contents\n========\n\n.. toctree::\n   :glob:\n\n   *\n", encoding="utf-8")
    settings = {"html_theme": theme, "project": "A handbook", "html_permalinks": False}
    for builder in ("html", "text"):
        with (work / "log").open("w", encoding="utf-8") as log:  # of directives that only the packages' own settings know
            Sphinx(str(work), None, str(work / builder), str(work / "trees"), builder, settings, log, log).build()
    made = ((work / "html" / f"{number}.html", work / "text" / f"{number}.txt") for number in range(len(found)))
    return [(page.read_text(encoding="utf-8"), label.read_text(encoding="utf-8")) for page, label in made]


def mkdocs(found: list[Path], theme: str, work: Path) -> list[tuple[str, str]]:
    from markdown import markdown
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    (work / "docs").mkdir()
    (work / "docs" / "index.md").write_text("# Contents\n", encoding="utf-8")
    for number, path in enumerate(found):
        shutil.copy(path, work / "docs" / f"{number}.md")
    (work / "mkdocs.yml").write_text(f"site_name: A handbook\ntheme: {theme}\nuse_directory_urls: false\nsite_dir: html\n")
    given = load_config(str(work / "mkdocs.yml"))
    build(given)
    made = []
    for number, path in enumerate(found):
        bare = markdown(path.read_text(encoding="utf-8"), extensions=given.markdown_extensions)
        label = html.unescape(re.sub(r"<[^>]+>", " ", bare))
        made.append(((work / "html" / f"{number}.html").read_text(encoding="utf-8"), label))
    return made


def main(folder: Path) -> None:
    download(folder / "sources")
    rst, markdown = sources(folder / "sources", ".rst"), sources(folder / "sources", ".md")
    for number, theme in enumerate(SPHINX):
        keep(sphinx, rst[number :: len(SPHINX)], theme, folder)
    for theme in MKDOCS:
        keep(mkdocs, markdown, theme, folder)


def keep(make: Callable[[list[Path], str, Path], list[tuple[str, str]]], found: list[Path], theme: str, folder: Path) -> None:
    work, pages = folder / "work" / f"{make.__name__}-{theme}", folder / "pages" / f"{make.__name__}-{theme}"
    work.mkdir(parents=True)
    pages.mkdir(parents=True)
    for number, (page, label) in enumerate(make(found, theme, work)):
        if len(re.findall(r"\w+", label)) >= LEAST_WORDS:
            (pages / f"{number}.html").write_text(page, encoding="utf-8")
            (pages / f"{number}.txt").write_text(label, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
