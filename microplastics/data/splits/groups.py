"""Which images belong together: pieces of one sample or filter, copies of one photograph."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from microplastics.data.coco import EXAMPLES, show
from microplastics.data.images import read_image
from microplastics.data.splits.similarity import Fingerprint, find_duplicates, fingerprint
from microplastics.utils.errors import UserError
from microplastics.utils.system import available_processors

# What a regex that backtracks costs grows with the length; Python has no time limit for it.
_MAX_NAME = 255
_MAX_CSV_BYTES = 200 * 2**20
_ROBOFLOW = re.compile(r"(?P<name>.+)\.rf\.[0-9A-Za-z]{6,}\.[A-Za-z]{3,4}")


def compile_pattern(pattern: str) -> re.Pattern:
    """Compile the regular expression of ``--group-regex``.

    Args:
        pattern: with one capture group, or one that is named ``group``.

    Raises:
        UserError: it is not a regular expression, or its group is not clear.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"The group regex {show(pattern)} is not a regular expression ({error}); correct it."
        ) from error
    if "group" not in compiled.groupindex and compiled.groups != 1:
        raise UserError(
            f"The group regex {show(pattern)} has {compiled.groups} capture groups; put "
            "parentheses round the one part of the file name that names the filter, or name it "
            "(?P<group>...)."
        )
    return compiled


def group_of(file_name: str, pattern: str | re.Pattern) -> str:
    """Take the group's name out of a file name.

    Args:
        file_name: as it stands in the JSON, folders included; ``re.search`` looks for the
            pattern anywhere in it.
        pattern: as :func:`compile_pattern` takes it.

    Raises:
        UserError: the name does not match, or is longer than 255 characters.
    """
    compiled = compile_pattern(pattern) if isinstance(pattern, str) else pattern
    if len(file_name) > _MAX_NAME:
        raise UserError(
            f"The file name {show(file_name)} has {len(file_name)} characters; a group regex is "
            f"applied to {_MAX_NAME} at the most: shorten it, or give the groups as a CSV file."
        )
    match = compiled.search(file_name)
    group = match and match.group("group" if "group" in compiled.groupindex else 1)
    if not group:
        raise UserError(
            f"The file name {show(file_name)} does not match the group regex "
            f"{show(compiled.pattern)}; widen the regex, or rename the image."
        )
    return group


def roboflow_original(file_name: str) -> str | None:
    """Return what Roboflow's augmented copies of one image share, or None for other names.

    Roboflow writes ``NAME_jpg.rf.HASH.jpg``; what stands before ``.rf`` is
    returned, the folders included.
    """
    if len(file_name) > _MAX_NAME:
        return None
    match = _ROBOFLOW.fullmatch(file_name)
    return match["name"] if match else None


def groups_from_csv(path: str | os.PathLike) -> dict[str, str]:
    """Read a table of images and their groups.

    The columns ``image`` and ``group`` may stand anywhere, in any case; they are separated by
    commas, semicolons or tabs, in UTF-8 or UTF-16 (with or without BOM) or Windows-1252.

    Returns:
        the group of each image, by the name in the table.

    Raises:
        UserError: the file cannot be read, lacks a column or a value, or names an image twice.
    """
    return table_from_csv(path, "image", "group")


def read_text(path: str | os.PathLike) -> str:
    """Read a text file as spreadsheets and editors write it: UTF-8, UTF-16 or Windows-1252.

    Raises:
        UserError: the file is missing, too large for a list of names, or binary.
    """
    path = os.fspath(path)
    try:
        if os.path.getsize(path) > _MAX_CSV_BYTES:
            raise UserError(f"{path} is too large for a list of images; give the right file.")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"Cannot read {path}: {reason}; correct the path.") from error
    encodings = (
        ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252")
    )
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UserError(f"{path} is not text; save it as CSV or text in UTF-8.")


def table_from_csv(path: str | os.PathLike, key: str, column: str) -> dict[str, str]:
    """Read two columns of a CSV; see :func:`groups_from_csv`.

    Args:
        path: the file.
        key: column of the names, each of which stands once: ``image`` or ``sample``.
        column: of the values.

    Returns:
        the value of each name.

    Raises:
        UserError: as of :func:`groups_from_csv`.
    """
    path = os.fspath(path)
    text = read_text(path)
    header = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=header.count)
    rows = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=separator)
    values: dict[str, str] = {}
    try:
        titles = [title.strip().lower() for title in next(rows, [])]
        for title in (key, column):
            if titles.count(title) != 1:
                found = ", ".join(show(title) for title in titles[:10]) or "nothing"
                raise UserError(
                    f"{path} needs one column {title!r} and has {found}; its first line must be "
                    f"{key},{column}."
                )
        name_at, value_at = titles.index(key), titles.index(column)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            cells = [row[at].strip() if at < len(row) else "" for at in (name_at, value_at)]
            if not all(cells):
                raise UserError(f"{path}, line {rows.line_num}: fill in both {key} and {column}.")
            name, value = cells
            if name in values:
                what = "twice" if values[name] == value else f"in two {column}s"
                raise UserError(
                    f"{path}, line {rows.line_num}: {show(name)} is listed {what}; list every "
                    f"{key} once."
                )
            values[name] = value
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}; save it as CSV again.") from error
    if not values:
        raise UserError(f"{path} lists no {key}; fill in the columns {key} and {column}.")
    return values


def folds_from_csv(path: str | os.PathLike) -> dict[str, str]:
    """Read a table of images and their folds, like :func:`groups_from_csv`."""
    return table_from_csv(path, "image", "fold")


class NameIndex:
    """Finds the image that a foreign list means: by its name, its last part, or its stem."""

    def __init__(self, file_names: Sequence[str]):
        self._exact = {name: name for name in file_names}
        self._by_part: dict[str, set[str]] = defaultdict(set)
        self._by_stem: dict[str, set[str]] = defaultdict(set)
        for name in file_names:
            self._by_part[_last_part(name)].add(name)
            self._by_stem[Path(_last_part(name)).stem].add(name)

    def find(self, name: str) -> str | None:
        """Return the file name of the image, or None where no or more than one image fits."""
        if name in self._exact:
            return name
        part = _last_part(name)
        for matches in (self._by_part.get(part), self._by_stem.get(part)):
            if matches:
                return next(iter(matches)) if len(matches) == 1 else None
        # "S1.3" is no file S1 of the kind 3.
        kind = re.fullmatch(r"\.[A-Za-z]\w{1,4}", Path(part).suffix)
        matches = self._by_stem.get(Path(part).stem, set()) if kind else set()
        return next(iter(matches)) if len(matches) == 1 else None

    def assign(self, table: dict[str, str], source: str, column: str) -> dict[str, str]:
        """Turn a table by foreign names into one by file name, of every image.

        Args:
            table: value by name.
            source: the file of the table, for the messages.
            column: what its values are called there.

        Raises:
            UserError: listing names that no image has, names of one image with two values, and
                images that the table leaves out.
        """
        values: dict[str, str] = {}
        unknown = []
        for name, value in table.items():
            found = self.find(name)
            if found is None:
                unknown.append(name)
            elif values.setdefault(found, value) != value:
                raise UserError(
                    f"{source} gives {show(found)} two {column}s, {show(values[found])} and "
                    f"{show(value)}; give it one."
                )
        problems = (
            (unknown, "names that are no image of the data set, or of several"),
            ([name for name in self._exact if name not in values], "images missing"),
        )
        for names, words in problems:
            if names:
                raise UserError(
                    f"{source} has {len(names)} {words}: {listed(names)}; correct the list."
                )
        return values


def listed(names: Sequence[str]) -> str:
    """The first few names, quoted."""
    more = ", ..." if len(names) > EXAMPLES else ""
    return ", ".join(show(name) for name in names[:EXAMPLES]) + more


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def groups_by_similarity(
    image_paths: Sequence[str | os.PathLike],
    max_pixels: int | None = None,
    workers: int | None = None,
) -> list[int]:
    """Number the images so that copies of one photograph share a number.

    Args:
        image_paths: image files; each is decoded once, in parallel.
        max_pixels: as in :func:`microplastics.data.images.read_image`.
        workers: threads; as many as there are processors, 8 at the most, if None.

    Returns:
        for each image the index of the first image of its cluster, as
        :func:`microplastics.data.splits.similarity.find_duplicates` groups them.

    Raises:
        UserError: an image cannot be read.
    """

    def take(path: str | os.PathLike) -> Fingerprint:
        return fingerprint(read_image(path, max_pixels=max_pixels))

    with ThreadPoolExecutor(workers or min(8, available_processors())) as pool:
        try:
            taken = pool.map(take, image_paths)
            bar = tqdm(taken, "reading images", len(image_paths), unit="image", disable=None)
            fingerprints = list(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    duplicates = find_duplicates(fingerprints)
    clusters = list(range(len(image_paths)))
    for group in (*duplicates.exact, *duplicates.near):  # near ones hold their exact ones
        for index in group:
            clusters[index] = group[0]
    return clusters
