"""Plugins of the site: the repository's documents as pages, formulas as MathML, doctests as code."""

import html
import json
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "LOG.md": "log.md",
    "examples/vae.ipynb": "notebook.md",
}
LINKS = PAGES | {"examples/own_estimator/README.md": "extending.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
CELL = re.compile(r"<td\b.*?</td>", re.DOTALL)
LONG_CODE = re.compile(r"(?<=<code>)[^<]{31,}(?=</code>)")
WORD_END = re.compile(r"(?<=\w)(?:_|/|::)(?=\w)")  # where a long name may break; a command does at its spaces
DOCTEST = re.compile(r"(^>>> .*(?:\n(?!\s*$).+)*)", re.MULTILINE)
LINK = re.compile(r"\[([^]]*)\]\((?:\.\./)?((?:docs/)?[\w./-]+\.(?:md|LICENSE|png|svg|py|cff|ipynb))\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=markdown_of(text) if source.endswith(".ipynb") else text))
    return files


def markdown_of(notebook: str) -> str:
    """Return a notebook's cells as a page."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"])
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links lead to pages; a file that is none keeps its text alone."""

    def link(match: re.Match[str]) -> str:
        text, target = match[1], match[2].removeprefix("docs/")
        target = LINKS.get(target, target)
        inside = (ROOT / "docs" / target).exists() or target in LINKS.values()
        return f"[{text}]({target})" if inside else text

    return LINK.sub(link, markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers render without a script, and let the long code in a table break."""

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).strip()
        for unknown, known in ((r"\arg", r"\mathrm{arg}\,"), ("{aligned}", "{align*}")):  # to the converter
            tex = tex.replace(unknown, known)
        tex = re.sub(r"(?<=[\w}]) *\\log", r"\\,\\log", tex)  # it sets a logarithm without its spaces
        tex = re.sub(r"\\log(?= *[\\\w])", r"\\log\\,", tex)
        drawn = convert(tex, display="inline" if match[1] == "span" else "block")
        if "\\" in re.sub("<[^>]*>", "", drawn):
            raise PluginError(f"a formula holds what latex2mathml does not know: {tex}")
        return drawn

    def breakable(code: re.Match[str]) -> str:
        return code[0].replace(" ", " <wbr>") if " " in code[0] else WORD_END.sub(r"\g<0><wbr>", code[0])

    return CELL.sub(lambda cell: LONG_CODE.sub(breakable, cell[0]), FORMULA.sub(formula, output))


class Docstrings(Extension):
    """Make Markdown of docstrings: doctests would be quotations to it, and shapes with a star emphasis."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Put fences around the ones, and escape the others."""
        if obj.docstring is not None:
            fenced = DOCTEST.sub(r"```pycon\n\1\n```", obj.docstring.value)
            obj.docstring.value = fenced.replace("(*more", r"(\*more")
