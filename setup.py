import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent

# Read, not imported, as nothing is installed yet.
INIT = (ROOT / "src/alit_hf/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"$', INIT, re.MULTILINE).group(1)

README = ROOT / "README.md"

setup(
    name="alit-hf",
    version=VERSION,
    description="ALIT, adaptive length image tokenization by recurrent allocation, as a Hugging Face model",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["image tokenizer", "adaptive length", "ALIT", "transformers", "vector quantization"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"alit_hf": ["py.typed", "checkpoints/**", "demo/*.css", "networks/*.txt"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        # The first ones known to give AutoImageProcessor without torchvision.
        "transformers>=5.20.2",
        "diffusers>=0.41",
        "accelerate>=1.15",
        "datasets>=5.2",
        "pyarrow>=25",
        "fsspec>=2023.1",
        "huggingface-hub>=1.33",
        "filelock>=4.1",
        "safetensors>=0.8",
        "evaluate>=0.4.6",
        "numpy>=2.2",
        "pillow>=12.3",
        "tqdm>=4.70",
        "pyyaml>=6.0.3",
        "matplotlib>=3.10",
    ],
    extras_require={
        "train": ["omegaconf>=2.4", "tensorboard>=2.21", "scipy>=1.15"],
        "eval": ["torchmetrics>=1.9", "scipy>=1.15", "scikit-learn>=1.7", "pandas>=2.3"],
        "demo": ["scikit-image>=0.25", "gradio>=6.31", "packaging>=24"],
        "docs": ["mkdocs-material>=9.7", "mkdocstrings[python]>=1.0.6"],
        "dev": [
            "pytest>=9.2",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "hypothesis>=6.168",
            # Of the tests of export, of 8-bit weights, and of transformers' own tests.
            "onnx>=1.19",
            "onnxscript>=0.5",
            "onnxruntime>=1.23",
            "bitsandbytes>=0.49",
            "parameterized>=0.9",
            "sybil>=9.3",
            "ruff>=0.17",
            # Drives the Chromium that the machine has, if it has one; its own need not be downloaded.
            "playwright>=1.60",
        ],
    },
    entry_points={"console_scripts": ["alit = alit_hf.cli:main"]},
)
