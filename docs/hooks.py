"""What MkDocs does besides: the pages above docs/ join the site, and links lead where they can.

In the repository pages link to each other and to sources by relative paths, as GitHub shows them.
On the site all pages are side by side, and README.md is the front page. A link to a source file
leads to the repository where `repo_url` says where that is; else only its text stays, as code.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ABOVE = {
    "README.md": "index.md",
    "SECURITY.md": "SECURITY.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
"""Pages of the repository's root, and what they are called on the site."""
PIECE = re.compile(
    r"^```.*?^```|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)|`[^`\n]+`",
    flags=re.M | re.S,
)
"""A block of code, a link, or code in a line: code is left as it is."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages above docs/."""
    for source, name in ABOVE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links of one page, as they are on the site."""
    folder = "" if page.file.src_uri in ABOVE.values() else "docs"

    def led(piece: re.Match[str]) -> str:
        picture, text, target, anchor = piece.groups()
        if not target or "://" in target:
            return piece[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name = ABOVE.get(path) or path.removeprefix("docs/")
        if path in ABOVE or (path.startswith("docs/") and files.get_file_from_path(name)):
            return f"{picture}[{text}]({name}{anchor or ''})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return text if " " in text or "`" in text else f"`{text}`"

    return PIECE.sub(led, markdown)
