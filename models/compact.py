"""Compact: 3,236 parameters that hold 99.4 % in their last epochs on about half of the seeds, by rfcalc's own recipe.
One convolution works four times, each time with a norm of its own: 20 parameters instead of 900."""

import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, bias=False)  # N 28->26  J 1  R 3
        self.first_norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 10, 3, bias=False)  # N 26->24  J 1  R 5
        self.second_norm = nn.BatchNorm2d(10)
        self.again = nn.Conv2d(10, 10, 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(10) for _ in range(4))
        self.last = nn.Conv2d(10, 14, 3, bias=False)  # N 4->2  J 4  R 32
        self.last_norm = nn.BatchNorm2d(14)
        self.classes = nn.Conv2d(14, 10, 1, bias=False)  # N 1->1  J 4  R 36

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(F.relu(self.first(x)))
        x = self.second_norm(F.relu(self.second(x)))
        x = F.max_pool2d(x, 2)  # N 24->12  J 2  R 6
        for norm, padding in zip(self.norms, (1, 0, 1, 0), strict=True):
            x = norm(F.relu(F.conv2d(x, self.again.weight, padding=padding)))
        x = F.max_pool2d(x, 2)  # N 8->4  J 4  R 24
        x = self.last_norm(F.relu(self.last(x)))
        x = F.adaptive_avg_pool2d(x, 1)  # N 2->1  J 4  R 36
        return F.log_softmax(self.classes(x).flatten(1), dim=-1)
