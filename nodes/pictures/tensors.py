"""Pictures and predictions between the host's tensors and Pillow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor


def as_pictures(images: Tensor) -> list[Image.Image]:
    """The host's IMAGE [pictures, height, width, 1, 3 or 4] as pictures; a value that is not a number becomes black."""
    pixels = (images.float().nan_to_num() * 255).round().clamp(0, 255).byte().cpu().numpy()
    return [Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture) for picture in pixels]


def as_image(picture: Image.Image) -> Tensor:
    """A picture in RGB as the host's IMAGE [1, height, width, 3]."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(1, picture.height, picture.width, 3).float() / 255


def joined(predictions: Mapping[int, Mapping[str, Tensor]]) -> Tensor:
    """The predictions of each step, in the order of the steps, as one batch."""
    return torch.cat([value for step in sorted(predictions) for value in predictions[step].values()])
