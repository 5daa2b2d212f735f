"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
