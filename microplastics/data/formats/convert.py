"""Converting a data set of any known format into the canonical one, in one call."""

from dataclasses import dataclass
from pathlib import Path

from microplastics.data.formats import canonical, registry
from microplastics.data.formats.canonical import Written
from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ReadOptions
from microplastics.errors import UserError


@dataclass
class Conversion:
    """What :func:`convert_dataset` did.

    Attributes:
        format: name of the format that was read.
        written: one entry a split.
        notes: what was changed and left out.
    """

    format: str
    written: list[Written]
    notes: Notes


def convert_dataset(
    path: Path,
    output: Path,
    format: str | None = None,
    *,
    categories: str | None = None,
    place: str = "keep",
    options: ReadOptions | None = None,
) -> Conversion:
    """Convert a data set; see :func:`microplastics.data.formats.canonical.write_dataset`.

    Args:
        path: file or folder of the data set.
        output: folder of the canonical data set, outside of ``path``.
        format: one of ``registry.READERS``; found out if None, except ``"blanks"``.
        categories: ``old=New,other=New,third=``.
        place: ``"keep"``, ``"copy"`` or ``"link"`` the images.
        options: how to read.

    Raises:
        UserError: the data set cannot be read or written.
    """
    path, output, options = Path(path), Path(output), options or ReadOptions()
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--output {output} lies in --input {path}, where the next run would read it; choose "
            "a folder outside of it."
        )
    if options.line_width is not None and not 0 < options.line_width < 1e4:
        raise UserError(f"--line-width is {options.line_width}; give a width in px above 0.")
    if options.classes is not None and format != "blanks":
        raise UserError(
            "--classes names those of blanks alone; use --categories, or --from blanks."
        )
    if categories is not None and format == "blanks":
        raise UserError("Blanks have no classes to rename; say which the set has with --classes.")
    renamed = None if categories is None else canonical.parse_categories(categories)
    notes = Notes(NOTES)
    name, sources = registry.open_dataset(path, options, notes, format)
    written = canonical.write_dataset(
        sources,
        output,
        notes,
        categories=renamed,
        place=place,
        options=options,
        about={"input": str(path.absolute()), "format": name},
        verbatim=name == "blanks",
    )
    return Conversion(name, written, notes)


def describe(conversion: Conversion) -> str:
    """Say in a table, the notes, and an entry a split, what was converted."""
    classes = list(conversion.written[0].instances)
    rows = [["split", "images", "blank", *classes]]
    for one in conversion.written:
        counts = [one.num_images, one.num_blank, *one.instances.values()]
        rows.append([one.split, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"format: {conversion.format}"]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    if len(conversion.notes):
        lines += ["changed or left out (all in conversion.json):"]
        lines += [f"  {line}" for line in conversion.notes.lines()]
    lines += [f"{one.split}: {one.entry}" for one in conversion.written]
    whole = [one for one in conversion.written if one.split == "all"]
    lines += [
        f"Not split yet: python tools/split_dataset.py --input {one.json_file} --images "
        f"{one.image_root} --output SPLITS"
        for one in whole
    ]
    return "\n".join(lines)
