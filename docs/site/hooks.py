"""What the site is made of beside docs/: the pages at the top of the repository, results, help.

They stay where people look for them in a checkout, and the command line describes itself.
"""

import re
import sys
from pathlib import Path

import click
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import messages

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
RESULTS = "benchmarks/results"


def on_files(files, config):
    """Add the pages of the repository, the plots and tables of the benchmarks, the help texts."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text)))
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in (".svg", ".json", ".png"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    files.append(File.generated(config, "reference/cli.md", content=_commands()))
    files.append(File.generated(config, "reference/messages.md", content=messages.page()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links from docs/ to files at the top lead to their pages."""
    markdown = markdown.replace("](../examples/README.md", "](examples.md")
    return markdown.replace(f"](../{RESULTS}/", "](results/")


def _relinked(text):
    """Return a page of the top with its links as they are on the site."""
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    for name, page in PAGES.items():
        text = re.sub(rf"\]\({name}", f"]({page}", text)
    return text.replace("](LICENSE)", "](https://www.apache.org/licenses/LICENSE-2.0)")


def _commands():
    """Return the help of every command."""
    from pyids.cli import cli

    parts = [
        "# Command line\n\nThe same as `pyids COMMAND --help` prints. Completion of commands and "
        "options in the shell: [Questions](../faq.md#completion-in-the-shell).\n"
    ]
    for name, command in [("", cli), *sorted(cli.commands.items())]:
        title = f"pyids {name}".strip()
        context = click.Context(command, info_name=title, terminal_width=96, max_content_width=96)
        parts.append(f"## {title}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)
