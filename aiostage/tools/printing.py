"""What the commands print: a table on a terminal, plain lines elsewhere, or one JSON document.

Escape codes go to a terminal alone, and not to one whose TERM is dumb or whose user has set NO_COLOR.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NAME_WIDTH = 15
NARROW = 50  # columns; below that a name stands above its text
NARROWEST = 12
BAR = 16  # cells

Mood = Literal["", "good", "bad"]
STYLES = {"": "", "good": "green", "bad": "bold red"}


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def may_escape() -> bool:
    """Whether stdout takes colours, and a cursor that is moved."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("dumb", "")


def columns() -> int:
    return max(NARROWEST, shutil.get_terminal_size().columns)


def open_console() -> Console:
    """Rich's view of stdout, with our own idea of what it takes."""
    from rich.console import Console

    return Console(
        color_system="auto" if may_escape() else None,
        force_terminal=may_escape(),
        width=columns() if on_terminal() else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Sheet:
    """Rows of a name and a text. On a terminal they are printed as a table, at the end; elsewhere line by line."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.sections: list[list[tuple[str, str, Mood, float | None]]] = [[]]

    def section(self) -> None:
        """What follows is about something else."""
        self.sections.append([])

    def row(self, name: str, text: str, *, mood: Mood = "", share: float | None = None) -> None:
        """`share`: from 0 to 1, drawn as a bar where there is a terminal."""
        if on_terminal():
            self.sections[-1].append((name, text, mood, share))
        else:
            print(f"{name:<{NAME_WIDTH}} {printable(text)}", flush=True)

    def end(self) -> None:
        """Print the table."""
        if on_terminal():
            print_table(open_console(), self)


def print_table(console: Console, sheet: Sheet) -> None:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if console.width < NARROW:
        console.print(sheet.title, style="bold")
        for name, text, mood, _ in (row for rows in sheet.sections for row in rows):
            console.print(name, style="cyan")
            console.print(Padding(Text(printable(text), STYLES[mood]), (0, 0, 0, 2)))
        return
    table = Table(title=sheet.title, title_justify="left", title_style="bold", box=box.ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for rows in sheet.sections:
        before = ""
        for name, text, mood, share in rows:
            words = Text(printable(text), STYLES[mood])
            table.add_row("" if name == before else name, words if share is None else bar(share, console) + words)
            before = name
        table.add_section()
    console.print(table)


def bar(share: float, console: Console) -> Text:
    from rich.text import Text

    full, empty = "##" if console.options.ascii_only else "━━"
    if not may_escape():  # where only colours would tell them apart
        empty = "-" if console.options.ascii_only else "╌"
    cells = round(min(1.0, max(0.0, share)) * BAR)
    return Text.assemble((full * cells, "orange1"), (empty * (BAR - cells), "bright_black"), "  ")


def print_document(schema: str, fields: dict[str, Any]) -> None:
    """One JSON document; docs/cli.md describes the fields of each schema."""
    import aiostage

    print(json.dumps({"schema": schema, "aiostage": aiostage.__version__, **fields}, indent=2, allow_nan=False))


def printable(text: str) -> str:
    """Without what would move the cursor or change colours: names of files, and what is in them, are anybody's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in valid(text))


def valid(text: str) -> str:
    """Bytes of a file's name that are no text, as `\\xff`."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
