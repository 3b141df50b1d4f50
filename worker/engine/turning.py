"""Images as none of them is found in the data: turned upside down, or by 90 degrees.

Shape suffixes: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Turn = Literal["auto", "flip", "rotate"]


def turned(images_NCHW: Tensor, turn: Turn) -> Tensor:
    """Images as none of them is found in the data. Rotation needs square images; `auto` says which of the two by colour."""
    if turn == "auto":
        turn = "rotate" if images_NCHW.shape[1] == 3 and images_NCHW.shape[2] == images_NCHW.shape[3] else "flip"
    return images_NCHW.flip(-2).contiguous() if turn == "flip" else images_NCHW.rot90(1, (-2, -1)).contiguous()
