"""What the processes of ``jail`` share, imported once."""

import importlib
import pkgutil

import matplotlib
import torch
from detectron2.engine import defaults

import microplastics

torch.set_num_threads(1)
matplotlib.get_configdir()  # it makes its folders once
matplotlib.get_cachedir()
defaults.collect_env_info = str  # it asks the compilers for their versions
for _module in pkgutil.walk_packages(microplastics.__path__, f"{microplastics.__name__}."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
