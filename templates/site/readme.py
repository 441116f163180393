"""Write README.md from nbs/index.ipynb: its text, and the results of its visible cells, with absolute links."""

import re
import tomllib
from pathlib import Path

from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute(markdown: str, documentation: str) -> str:
    "Links of a notebook in nbs/ as links of the published site; pictures point into the repository."
    markdown = re.sub(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)", r"![\1](nbs/\2)", markdown)
    parts = re.split(r"(!\[[^\]]*\]\([^)]*\))", markdown)
    site = [
        LINK.sub(lambda m: f"]({documentation}/{m[1].replace('.ipynb', '.html')})", part)
        for part in parts[::2]
    ]
    return "".join(a + b for a, b in zip(site, [*parts[1::2], ""], strict=True))


def shown(cell) -> list[str]:
    "What a reader sees of a code cell: its source and the text of its results."
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip()
    texts = [
        "".join(out.get("text") or out.get("data", {}).get("text/plain", ""))
        for out in cell.get("outputs", [])
    ]
    results = [
        "\n".join("    " + line for line in text.rstrip().splitlines()) for text in texts if text.strip()
    ]
    return [f"```python\n{source}\n```", *results]


def readme() -> str:
    "The whole page."
    documentation = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
    parts = ["<!-- Made from nbs/index.ipynb by templates/site/readme.py -->"]
    for cell in read_nb(ROOT / "nbs" / "index.ipynb").cells:
        hidden = re.search(r"^#\| *(hide|export|default_exp)", cell.source, re.M)
        if cell.cell_type == "markdown":
            parts.append(absolute(cell.source.strip(), documentation))
        elif cell.cell_type == "code" and cell.source.strip() and not hidden:
            parts.extend(shown(cell))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
