"""Step 4, global pooling: an average over the 6x6 map replaces the 6x6 conv and its 3,600 weights.
The 1x1 conv before it now makes the class scores, so it loses its norm and its ReLU."""

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
            nn.Conv2d(1, 8, 3, bias=False),  # N 28->26  J 1  R 3
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, bias=False),  # N 26->24  J 1  R 5
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.transition = nn.Sequential(
            nn.MaxPool2d(2, 2),  # N 24->12  J 2  R 6
            nn.Conv2d(16, 8, 1, bias=False),  # N 12->12  J 2  R 6
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 10, 3, bias=False),  # N 12->10  J 2  R 10
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.Conv2d(10, 10, 3, bias=False),  # N 10->8  J 2  R 14
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.Conv2d(10, 16, 3, bias=False),  # N 8->6  J 2  R 18
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.output = nn.Sequential(
            nn.Conv2d(16, 10, 1, bias=False),  # N 6->6  J 2  R 18
            nn.AvgPool2d(6),  # N 6->1  J 2  R 28
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        x = self.transition(x)
        x = self.body(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=-1)
