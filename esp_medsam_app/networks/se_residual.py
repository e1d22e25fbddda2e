"""The residual block that DeSAM's mask decoder is made of."""

from __future__ import annotations

from torch import Tensor, nn

SQUEEZE = 16
SLOPE = 0.01


class Convolution(nn.Sequential):
    """A convolution without bias (`conv`), which keeps the grid; or one that doubles it."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, double: bool = False) -> None:
        super().__init__()
        self.conv: nn.Module = (
            nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2, bias=False)
            if double
            else nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        )


class SqueezeExcitation(nn.Module):
    """Weighs the channels of `[B, C, H, W]` by what their means say together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // SQUEEZE
        self.fc = nn.Sequential(
            nn.Linear(channels, narrow, bias=False),
            nn.ReLU(),
            nn.Linear(narrow, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class SeResidual(nn.Module):
    """3x3, norm, LeakyReLU, 3x3, norm, squeeze and excitation; plus the input; LeakyReLU.

    The input goes through 1x1 and norm where the number of channels changes. Instance norm without
    weights of its own. Names are those of DeSAM's checkpoints.

    Args:
        inputs: channels of the input `[B, inputs, H, W]`.
        outputs: channels of the result `[B, outputs, H, W]`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, outputs)
        self.conv2 = Convolution(outputs, outputs)
        self.conv3 = Convolution(inputs, outputs, kernel=1) if inputs != outputs else None
        self.norm = nn.InstanceNorm2d(outputs)
        self.se = SqueezeExcitation(outputs)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.conv2(self.act(self.norm(self.conv1(x)))))
        beside = x if self.conv3 is None else self.norm(self.conv3(x))
        return self.act(self.se(inner) + beside)
