"""Lay the example out in a folder, ready to be registered.

    python -m worker.examples.digits DIRECTORY

Writes `dataset/digits.npz` and `model/`, and prints one line of JSON that says where they are and how to register them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from worker.examples.digits.data import CLASS_NAMES, scans

HERE = Path(__file__).parent


def lay_out(directory: Path) -> dict[str, object]:
    """Write the dataset and copy the model into `directory`; what to register, paths absolute.

    Raises: OSError; FileExistsError when `directory` already holds a model.
    """
    dataset = directory / "dataset"
    dataset.mkdir(parents=True, exist_ok=True)
    images_NHW, labels_N, ids_N = scans()
    np.savez_compressed(dataset / "digits.npz", images=images_NHW, labels=labels_N, ids=ids_N)
    shutil.copytree(HERE / "model", directory / "model")
    return {
        "family": "ddpm",
        "dataset": str(dataset.resolve()),
        "model": str((directory / "model").resolve()),
        "class_names": list(CLASS_NAMES),
        "held_out_ids": json.loads((HERE / "held_out_ids.json").read_text()),
    }


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m worker.examples.digits DIRECTORY")
    print(json.dumps(lay_out(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
