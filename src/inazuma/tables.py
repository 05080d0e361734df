"""Tables on the terminal: with rich where it is installed, else as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from inazuma.seed import isolate_rng


def print_results(results: Sequence[dict[str, float]], stage: str) -> None:
    """Print what an evaluation gave: one row per metric, one column per loader."""
    names = sorted({_base(name) for result in results for name in result})
    columns = [{_base(name): value for name, value in result.items()} for result in results]
    header = [f"{stage.capitalize()} metric", *(f"DataLoader {index}" for index in range(len(results)))]
    rows = [[name, *(str(column.get(name, "")) for column in columns)] for name in names]
    if rows:
        print_table(header, rows)


def _base(name: str) -> str:
    return name.split("/dataloader_idx_")[0]


@isolate_rng()  # rich draws a random number when it is imported
def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table."""
    rows = list(rows)
    if find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "─" * (sum(widths) + 3 * len(widths) - 1)
    lines = [
        " " + " │ ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
    ]
    print(rule, lines[0], rule, *lines[1:], rule, sep="\n", flush=True)
