"""The address of the repository: ``python -m tests.packaging.home https://github.com/OWNER/NAME`` changes it.

``Repository`` in ``[project.urls]`` is the one that counts. Files that no program makes (the citation, the
changelog, what the registry reads) repeat it, since none of their formats can refer to another file.
"""

import subprocess
import sys
from pathlib import Path

import toml

ROOT = Path(__file__).parents[2]
# where the address may stand; test_documents.py finds it nowhere else
PLACES = ("*.md", "docs/*.md", "*.toml", "*.cff", ".github/*.yml")


def address(root=ROOT):
    """Return the address of the repository, without a slash at its end."""
    return toml.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def pages(root=ROOT):
    """Return the tracked files that may hold the address."""
    command = ["git", "-c", "core.quotePath=false", "ls-files", "--", *PLACES]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", check=True)
    return [root / name for name in listed.stdout.splitlines()]


def move(new, files, root=ROOT):
    """Write the address ``new`` in place of the old one in ``files``; return those that changed."""
    old, changed = address(root), []
    for file in files:
        text = file.read_bytes().decode()
        if old in text:
            file.write_bytes(text.replace(old, new.rstrip("/")).encode())
            changed.append(file)
    return changed


if __name__ == "__main__":
    for file in move(sys.argv[1], pages()):
        print(file.relative_to(ROOT))  # noqa: T201
