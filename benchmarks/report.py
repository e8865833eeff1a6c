"""`python -m benchmarks.report`: write figures and plots into docs/, from the JSON in results/.

The tables and plots of docs/performance.md, and the soak's table in docs/reliability.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aiostage.tools.arguments import Parser
from aiostage.tools.status import exit_status

from . import costs, fences, gfx, lag, pools, since, soak, textures, throughput
from .machine import RESULTS

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
RELIABILITY = PAGE.with_name("reliability.md")
BEGIN, END = "<!-- figures: written by python -m benchmarks.report -->", "<!-- end of figures -->"
MACHINES = {"h100": "H100", "llvmpipe": "llvmpipe"}


def main() -> None:
    Parser(prog="report", description=__doc__.partition("\n")[2].strip()).parse_args()
    PAGE.write_text(page(PAGE.read_text(), sections()))
    RELIABILITY.write_text(page(RELIABILITY.read_text(), soaks()))
    for machine in MACHINES:
        plot(machine)


def page(text: str, figures: Iterable[str]) -> str:
    """`text` with the figures of today's JSON between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n\n" + "\n".join(figures) + END + rest.split(END)[1]


def sections() -> Iterator[str]:
    for machine, title in MACHINES.items():
        about = load(machine, "throughput")["machine"]
        yield f"## {title}\n"
        yield f"{about['adapter']}, driver {about['driver']}, {about['cores']} cores, Python {about['python']}, "
        yield f"wgpu {about['wgpu']}, {about['date']}.\n"
        if has(machine, "costs"):
            figures = load(machine, "costs")["figures"]
            yield f"### One upload at a time (`{machine}-costs.json`)\n"
            yield table(costs.TRANSFERS_HEADER, costs.transfer_rows(figures))
            yield f"### Costs (`{machine}-costs.json`)\n"
            yield table(costs.HEADER, costs.rows(figures))
        if has(machine, "since"):
            yield f"### Before and after the native carrier (`{machine}-since.json`)\n"
            yield table(since.HEADER, since.rows(load(machine, "since")["figures"]))
        for kind in ("lag", "lag-uvloop"):
            if has(machine, kind):
                yield f"### The loop's lag beside eight coroutines that upload (`{machine}-{kind}.json`)\n"
                yield table(lag.HEADER, lag.rows(load(machine, kind)["figures"]))
        yield f"### Fences (`{machine}-fences.json`)\n"
        yield table(fences.HEADER, fences.rows(load(machine, "fences")["figures"]))
        for kind in ("throughput", "throughput-uvloop"):
            if has(machine, kind):
                yield from rates(machine, kind)
        yield f"![GB/s by size of the arrays](images/throughput-{machine}.png)\n"
        yield from rates(machine, "textures")
        yield f"### Frames of 198 MB at {textures.FPS} per second (`{machine}-textures.json`)\n"
        yield table(textures.FRAMES_HEADER, textures.frame_rows(load(machine, "textures")["figures"]["frames"]))
        if has(machine, "gfx"):
            yield f"### Texels that arrive while pygfx draws them (`{machine}-gfx.json`)\n"
            yield table(gfx.HEADER, gfx.rows(load(machine, "gfx")["figures"]))
        if has(machine, "pools"):
            yield f"### Memory pools (`{machine}-pools.json`)\n"
            yield table(pools.HEADER, pools.rows(load(machine, "pools")["figures"]))


def soaks() -> Iterator[str]:
    """One column for each machine that the soak ran on."""
    names = sorted(path.name.removesuffix(".json") for path in RESULTS.glob("*-soak.json"))
    columns = [soak.facts(json.loads((RESULTS / f"{name}.json").read_text())) for name in names]
    rows = [(what, *(column[what] for column in columns)) for what in columns[0]]
    yield table(["", *(f"`{name}.json`" for name in names)], rows)


def rates(machine: str, kind: str) -> Iterator[str]:
    for size, ways in load(machine, kind)["figures"].items():
        if "aiostage" in ways and "GB/s" in ways["aiostage"]:
            yield f"### {size}, {throughput.COROUTINES} coroutines (`{machine}-{kind}.json`)\n"
            yield table(throughput.HEADER, throughput.rows(ways))


def has(machine: str, kind: str) -> bool:
    return (RESULTS / f"{machine}-{kind}.json").exists()


def load(machine: str, kind: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((RESULTS / f"{machine}-{kind}.json").read_text())
    return figures


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(machine: str) -> None:
    """Throughput of every way by size, with the quartiles as error bars."""
    import matplotlib.pyplot as plt

    figures = load(machine, "throughput")["figures"]
    sizes = [size for size, ways in figures.items() if "aiostage" in ways]
    names = list(figures[sizes[0]])
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        rates = [figures[size][name]["GB/s"] for size in sizes]
        places = [j + (i - (len(names) - 1) / 2) * width for j in range(len(sizes))]
        spread = [[at["p50"] - at["p25"] for at in rates], [at["p75"] - at["p50"] for at in rates]]
        axes.bar(places, [at["p50"] for at in rates], width * 0.9, yerr=spread, label=name, capsize=2)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_ylabel("GB/s, median and quartiles")
    axes.set_title(f"Uploads from numpy arrays, 8 coroutines: {MACHINES[machine]}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(Path(PAGE.parent, "images", f"throughput-{machine}.png"), dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(exit_status("report", main))
