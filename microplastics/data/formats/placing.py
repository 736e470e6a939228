"""Putting images where a data set has them: left, copied or linked, never over other data."""

import contextlib
import filecmp
import os
import shutil
from pathlib import Path

from microplastics.errors import UserError
from microplastics.files import atomic_write, write_error

PLACES = ("keep", "copy", "link")


def place_image(source: Path, target: Path, place: str) -> None:
    """Copy or link one image. A file with the same content is left as it is.

    Args:
        source: the image.
        target: where it goes; missing folders are made.
        place: ``"copy"``, or ``"link"``: a hard link, or a symbolic one where that cannot be.

    Raises:
        UserError: another file is there, or it cannot be written.
    """
    try:
        if _is_there(source, target):
            return
        if place == "copy":
            with open(source, "rb") as read, atomic_write(target, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = source.resolve()
        try:
            os.link(origin, target)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without hard links
            target.symlink_to(origin)
    except OSError as error:
        raise write_error(target, error) from error


def _is_there(source: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    same = False
    with contextlib.suppress(OSError):
        same = os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)
    if not same:
        raise UserError(
            f"{source} would be written over {target}, which is another file; choose another "
            "--output, or give the images different names."
        )
    return True
