"""Where the parts of a folder with one diffusers UNet are: a plain folder, or one that a pipeline saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker.engine import weights
from worker.engine.errors import BadModel


@dataclass(frozen=True)
class Layout:
    """Paths relative to the folder."""

    config: Path
    weights: Path
    scheduler: Path | None

    @classmethod
    def of(cls, directory: Path) -> Layout:
        """Raises: BadModel when the folder has no config, or anything but one safetensors file of weights."""
        unet = Path("unet") if (directory / "unet" / "config.json").is_file() else Path()
        if not (directory / unet / "config.json").is_file():
            raise BadModel("expected config.json or unet/config.json in the model folder, found neither")
        candidates = (Path("scheduler_config.json"), Path("scheduler/scheduler_config.json"))
        scheduler = next((p for p in candidates if (directory / p).is_file()), None)
        return cls(unet / "config.json", weights.only_file(directory, below=unet), scheduler)
