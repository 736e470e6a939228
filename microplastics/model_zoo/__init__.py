"""The project's configs by name.

A wheel carries ``configs/`` in this package (see setup.py); a checkout reads the folder itself.
"""

from pathlib import Path

from detectron2.config import CfgNode

from microplastics.utils.errors import UserError

_PREFIX = "microplastics_"
_HERE = Path(__file__).parent


def config_names() -> list[str]:
    """Return the names that :func:`config_file` takes, without prefix and ending."""
    return sorted(path.stem.removeprefix(_PREFIX) for path in _folder().glob(f"{_PREFIX}*.yaml"))


def config_file(name: str) -> str:
    """Return the path of a config.

    Args:
        name: a path, or a name such as ``r50`` or ``microplastics_r50.yaml``.

    Raises:
        UserError: file_missing.
    """
    if Path(name).is_file():
        return name
    short = name.removeprefix(_PREFIX).removesuffix(".yaml")
    if short not in config_names():
        known = ", ".join(config_names())
        raise UserError(
            f"There is no config file {name}; expected the path of a YAML file, or one of {known}.",
            code="file_missing",
        )
    return str(_folder() / f"{_PREFIX}{short}.yaml")


def get_config(name: str) -> CfgNode:
    """Return a config, not frozen; see :func:`config_file` for the names and errors."""
    from microplastics.config import load_config

    return load_config(name)


def _folder() -> Path:
    packaged = _HERE / "configs"
    return packaged if packaged.is_dir() else _HERE.parents[1] / "configs"
