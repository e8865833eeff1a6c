"""`python docs/formats.py`: write the tables of formats into textures.md, from what aiostage.textures reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from aiostage.textures.names import (
    DXGI_FORMATS,
    DXGI_NAMES,
    FOURCC_FORMATS,
    VK_FORMATS,
    VK_NAMES,
    FileFormat,
    advice,
)

PAGE = Path(__file__).with_name("textures.md")
MARK = "<!-- {}: written by python docs/formats.py -->"
END = "<!-- end of {} -->"
_KIND = re.compile(r"_(UNORM_SRGB|[US]NORM|[US]INT|SRGB|[SU]?FLOAT|[US]SCALED|TYPELESS|[US]F16|SHAREDEXP)(?=_|$)")
_SIZE = re.compile(r"(?<=ASTC_)\d+x\d+|(?<=astc-)\d+x\d+")


def main() -> None:
    PAGE.write_text(page(PAGE.read_text()))


def page(text: str) -> str:
    """`text` with the tables of today between its marks."""
    for name, lines in tables():
        before, rest = text.split(MARK.format(name))
        _, after = rest.split(END.format(name))
        text = before + MARK.format(name) + "\n\n" + "".join(lines) + "\n" + END.format(name) + after
    return text


def tables() -> Iterator[tuple[str, Iterable[str]]]:
    """(name, its lines) of each."""
    header = "on the GPU", "how"
    yield "VkFormat", table(("VkFormat", *header), read_rows(VK_FORMATS.values()))
    yield "DXGI_FORMAT", table(("DXGI_FORMAT", *header), read_rows(DXGI_FORMATS.values()))
    yield "FourCC", table(("FourCC or D3DFORMAT", *header), read_rows(FOURCC_FORMATS.values()))
    yield "refused", table(("in the file", "why not, or what helps"), refused_rows())


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(header)
    yield from (f"| {' | '.join(row)} |\n" for row in [names, ["---"] * len(names), *rows])


def read_rows(formats: Iterable[FileFormat]) -> Iterator[tuple[str, str, str]]:
    families: dict[tuple[str, str], tuple[list[str], list[str]]] = {}  # (family, how): (kinds, formats on the GPU)
    for found in formats:
        if found.name.endswith("_TYPELESS"):  # the page says what these are
            continue
        family, kind = split(found.name)
        kinds, made = families.setdefault((family, how(found)), ([], []))
        add(kinds, kind)
        add(made, _SIZE.sub("W×H", found.format))
    same: dict[tuple[str, str], list[str]] = {}  # (formats on the GPU, how): families
    for (family, means), (kinds, made) in families.items():
        same.setdefault((", ".join(f"`{name}`" for name in made), means), []).append(joined(family, kinds))
    yield from (("; ".join(names), made, means) for (made, means), names in same.items())


def refused_rows() -> Iterator[tuple[str, str]]:
    reasons: dict[str, dict[str, list[str]]] = {}
    refused = [name for number, name in VK_NAMES.items() if number not in VK_FORMATS]
    refused += [name for number, name in DXGI_NAMES.items() if number not in DXGI_FORMATS]
    for name in refused:
        family, kind = split(name)
        if family.startswith("PVRTC"):
            family, kind = "PVRTC", ""
        elif kind in ("USCALED", "SSCALED"):
            family = "*"
        reason = advice(name, "`ktx create` or `texconv`").removeprefix(": ")
        add(reasons.setdefault(reason, {}).setdefault(family, []), kind)
    for reason, families in reasons.items():
        yield "; ".join(joined(family, kinds) for family, kinds in families.items()), reason


def how(found: FileFormat) -> str:
    """What is done with its texels."""
    name = found.expansion
    fraction = re.fullmatch(r"([rgba]\d)+", name)
    said = []
    if fraction:
        said.append("expanded: each channel to 8 bits")
    elif name in ("r8unorm", "rg8unorm"):
        said.append("expanded: the other colours 0")
    elif name == "bgr10a2":
        said.append("red and blue change places")
    elif name.startswith("bgr"):
        said.append("expanded, red and blue change places")
    elif name == "rgbx8":
        said.append("X becomes alpha 1")
    elif name:
        said.append("expanded")
    if name and found.alpha == "opaque" and name != "rgbx8":
        said.append("alpha 1")
    if found.swizzle:
        said.append(f"as it is, [swizzle](#swizzles) `{found.swizzle}`")
    if found.warning:
        said.append("as it is; [take alpha for 1](#alpha)")
    if found.alpha == "premultiplied":
        said.append("as it is; alpha is premultiplied")
    return ", ".join(said) or "as it is"


def split(name: str) -> tuple[str, str]:
    """(family with a * where its kind is, kind): ("R8_*", "UNORM")."""
    name = _SIZE.sub("W×H", re.sub(r"^(VK_FORMAT_|DXGI_FORMAT_|FourCC |D3DFMT_)", "", name))
    found = _KIND.search(name)
    return (name[: found.start()] + "_*" + name[found.end() :], found[1]) if found else (name, "")


def joined(family: str, kinds: list[str]) -> str:
    if len(kinds) == 1:
        return f"`{family.replace('*', kinds[0])}`"
    return f"`{family}` with {', '.join(kinds)}"


def add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


if __name__ == "__main__":
    main()
