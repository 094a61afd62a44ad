"""Step 2, model 2: model 1 with at most half the channels and a batch norm after every ReLU."""

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
        self.block1 = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.MaxPool2d(2, 2),  # 28 -> 14
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(2, 2),  # 14 -> 7
        )
        self.output = nn.Sequential(
            nn.Conv2d(32, 10, 3),  # 7 -> 5
            nn.AvgPool2d(5, stride=2),  # 5 -> 1
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        x = self.block2(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=1)
