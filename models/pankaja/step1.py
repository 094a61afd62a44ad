"""Step 1, the skeleton: no padding, no biases, few channels, global pooling behind a 1x1 class conv."""

import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
RECIPE: dict[str, object] = {
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False},
    "scheduler": None,
    "epochs": 15,
    "batch_size": 128,
    "train_augmentation": [],
    "normalize": {"mean": [0.1307], "std": [0.3081]},
    "seed": 1,
    "loss": "nll_loss on log_softmax output, mean over the batch",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),  # 28 -> 26
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, bias=False),  # 26 -> 24
            nn.ReLU(),
        )
        self.transition = nn.Sequential(
            nn.MaxPool2d(2, 2),  # 24 -> 12
            nn.Conv2d(16, 8, 1, bias=False),
            nn.ReLU(),
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 10, 3, bias=False),  # 12 -> 10
            nn.ReLU(),
            nn.Conv2d(10, 10, 3, bias=False),  # 10 -> 8
            nn.ReLU(),
            nn.Conv2d(10, 16, 3, bias=False),  # 8 -> 6
            nn.ReLU(),
        )
        self.output = nn.Sequential(
            nn.Conv2d(16, 10, 1, bias=False),
            nn.AvgPool2d(6),  # 6 -> 1
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        x = self.transition(x)
        x = self.body(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=1)
