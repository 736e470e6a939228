"""The project's configs and sweep files by name.

A wheel carries ``configs/`` in this package (see setup.py); a checkout reads the folder itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from microplastics.utils.errors import UserError

if TYPE_CHECKING:  # completion lists the names without Detectron2
    from detectron2.config import CfgNode

_PREFIX = "microplastics_"
_CONFIGS = f"{_PREFIX}*.yaml"
_SWEEPS = "sweeps/*.yaml"
_HERE = Path(__file__).parent


def config_names() -> list[str]:
    """Return the names that :func:`config_file` takes, without prefix and ending."""
    return sorted(_files(_CONFIGS))


def config_file(name: str) -> str:
    """Return the path of a config.

    Args:
        name: a path, or a name such as ``r50`` or ``microplastics_r50.yaml``.

    Raises:
        UserError: file_missing.
    """
    return _find(name, _CONFIGS, "config file")


def sweep_names() -> list[str]:
    """Return the names that :func:`sweep_file` takes, without ending."""
    return sorted(_files(_SWEEPS))


def sweep_file(name: str) -> str:
    """Return the path of a sweep file, given as a path or by a name such as ``roi_pooling``.

    Raises:
        UserError: file_missing.
    """
    return _find(name, _SWEEPS, "sweep file")


def get_config(name: str) -> "CfgNode":
    """Return a config, not frozen; see :func:`config_file` for the names and errors."""
    from microplastics.config import load_config

    return load_config(name)


def _find(name: str, pattern: str, what: str) -> str:
    if Path(name).is_file():
        return name
    files = _files(pattern)
    short = name.removeprefix(_PREFIX).removesuffix(".yaml")
    if short not in files:
        raise UserError(
            f"There is no {what} {name}; expected the path of a YAML file, or one of "
            f"{', '.join(sorted(files))}.",
            code="file_missing",
        )
    return str(files[short])


def _files(pattern: str) -> dict[str, Path]:
    return {path.stem.removeprefix(_PREFIX): path for path in _folder().glob(pattern)}


def _folder() -> Path:
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parents[1] / "configs"
