"""Groups of images that belong together."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PureWindowsPath

from tqdm.contrib.concurrent import thread_map

from microplastics.data.coco import EXAMPLES, show
from microplastics.data.images import read_image
from microplastics.data.splits.similarity import find_duplicates, fingerprint
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_table
from microplastics.utils.system import available_processors

# A regex that backtracks takes longer with the length; Python has no time limit for it.
_MAX_NAME = 255
_ROBOFLOW = re.compile(r"(?P<name>.+)\.rf\.[0-9A-Za-z]{6,}\.[A-Za-z]{3,4}")


def compile_pattern(pattern: str) -> re.Pattern:
    """Compile a regular expression with one capture group, or one named ``group``.

    Raises:
        UserError: ``option_invalid``.
    """
    try:
        compiled = re.compile(pattern)
        count = 1 if "group" in compiled.groupindex else compiled.groups
        reason = "" if count == 1 else f"it has {count} capture groups"
    except (re.error, RecursionError, OverflowError) as error:
        reason = str(error)
    if reason:
        raise UserError(
            f"The group regex {show(pattern)} is not a regular expression with one capture group "
            f"({reason}); put parentheses round the part of the file name that names the filter, "
            "or name it (?P<group>...).",
            code="option_invalid",
        )
    return compiled


def group_of(file_name: str, pattern: str | re.Pattern) -> str:
    """Extract the name of the group from a file name.

    Args:
        file_name: as in the JSON, folders included; the pattern is searched anywhere in it.
        pattern: as for :func:`compile_pattern`.

    Raises:
        UserError: ``option_invalid`` if the name does not match or has over 255 characters.
    """
    compiled = compile_pattern(pattern) if isinstance(pattern, str) else pattern
    match = compiled.search(file_name) if len(file_name) <= _MAX_NAME else None
    group = match and match.group("group" if "group" in compiled.groupindex else 1)
    if not group:
        raise UserError(
            f"The file name {show(file_name)} does not match the group regex "
            f"{show(compiled.pattern)} or has over {_MAX_NAME} characters; widen the regex, rename "
            "the image, or give the groups as a CSV file.",
            code="option_invalid",
        )
    return group


def roboflow_original(file_name: str) -> str | None:
    """Return the part of a name that Roboflow's augmented copies have in common, or None.

    Roboflow writes ``NAME_jpg.rf.HASH.jpg``; the part before ``.rf``, with folders, is returned.
    """
    match = _ROBOFLOW.fullmatch(file_name) if len(file_name) <= _MAX_NAME else None
    return match["name"] if match else None


def table_from_csv(path: str | os.PathLike, key: str, column: str) -> dict[str, str]:
    """Read values by name from two columns of a CSV (:func:`microplastics.utils.io.read_table`).

    Raises:
        UserError: ``table_invalid`` for a missing column or value or a repeated name, or as for
            ``read_table``.
    """
    path = os.fspath(path)
    table = read_table(path)
    titles = table.columns.tolist()
    if titles.count(key) != 1 or titles.count(column) != 1:
        raise UserError(
            f"{path} has the columns {listed(titles) or '(none)'}; expected {key!r} and {column!r} "
            f"once: its first line must be {key},{column}.",
            code="table_invalid",
        )
    table = table[[key, column]][(table != "").any(axis=1)]
    if table.empty:
        raise UserError(
            f"{path} lists no {key}; fill in the columns {key} and {column}.", code="table_invalid"
        )
    unusable = (table == "").any(axis=1) | table[key].duplicated()
    if unusable.any():
        line = unusable.idxmax()
        raise UserError(
            f"{path}, line {line}, is incomplete or lists {show(table[key][line])} again; fill in "
            f"{key} and {column}, and list every {key} once.",
            code="table_invalid",
        )
    return dict(zip(table[key], table[column], strict=True))


class NameIndex:
    """Finds images by file name, by its last part, or by its stem."""

    def __init__(self, file_names: Sequence[str]):
        self._names = set(file_names)
        self._by_part: dict[str, set[str]] = defaultdict(set)
        self._by_stem: dict[str, set[str]] = defaultdict(set)
        for name in file_names:
            path = PureWindowsPath(name)  # takes both / and \
            self._by_part[path.name].add(name)
            self._by_stem[path.stem].add(name)

    def find(self, name: str) -> str | None:
        """Return the file name of the image, or None if no image or more than one matches."""
        if name in self._names:
            return name
        path = PureWindowsPath(name)
        matches = self._by_part.get(path.name) or self._by_stem.get(path.name)
        # "S1.3" is not the file S1 with the extension 3.
        if not matches and re.fullmatch(r"\.[A-Za-z]\w{1,4}", path.suffix):
            matches = self._by_stem.get(path.stem)
        return next(iter(matches)) if matches and len(matches) == 1 else None

    def assign(self, rows: Iterable[tuple[str, str]], source: str, column: str) -> dict[str, str]:
        """Turn rows of an external name and a value into values by file name.

        Raises:
            UserError: ``table_invalid`` for names that match no image or several, for two values
                of one image, and for images that are not listed.
        """
        values: dict[str, str] = {}
        unknown = []
        for name, value in rows:
            found = self.find(name)
            if found is None:
                unknown.append(name)
            elif values.setdefault(found, value) != value:
                raise UserError(
                    f"{source} gives {show(found)} two {column}s, {show(values[found])} and "
                    f"{show(value)}; give it one.",
                    code="table_invalid",
                )
        missing = sorted(self._names - values.keys())
        for names, words in ((unknown, "match no image or several"), (missing, "are missing")):
            if names:
                raise UserError(
                    f"{source} is not a list of the images: {len(names)} names {words} "
                    f"({listed(names)}); correct it.",
                    code="table_invalid",
                )
        return values


def listed(names: Sequence[str]) -> str:
    """Join the first few names, quoted."""
    more = ", ..." if len(names) > EXAMPLES else ""
    return ", ".join(show(name) for name in names[:EXAMPLES]) + more


def groups_by_similarity(image_paths: Sequence[str | os.PathLike]) -> list[int]:
    """Group copies of one photograph: for each image the index of the first of its group.

    Raises:
        UserError: an image cannot be read.
    """

    fingerprints = thread_map(
        lambda path: fingerprint(read_image(path)),
        image_paths,
        max_workers=min(8, available_processors()),
        desc="reading images",
        unit="image",
        disable=None,
    )
    duplicates = find_duplicates(fingerprints)
    firsts = list(range(len(image_paths)))
    for group in (*duplicates.exact, *duplicates.near):  # near groups contain exact duplicates
        for index in group:
            firsts[index] = group[0]
    return firsts
