"""ResNet-18 for small images: a 3x3 stem without maximum pooling, four stages of two basic blocks.

Source: He et al., Deep residual learning, CVPR 2016; the stem and the slim width are those of the continual-learning
literature (first stage of 20 channels instead of 64).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .norms import make_norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: float[B, inputs, H, W] to float[B, width, H / stride, W / stride]."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        plain = norm == "none"
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=plain)
        self.norm1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=plain)
        self.norm2 = make_norm(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=plain), make_norm(norm, width))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet18(nn.Module):
    """The body alone: float[B, channels, H, W] to float[B, 8 * width], the mean over positions."""

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=norm == "none")
        self.stem_norm = make_norm(norm, width)
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(BasicBlock(inputs, width << stage, stride, norm))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(torch.relu(self.stem_norm(self.stem(x))))
        return out.mean((2, 3))
