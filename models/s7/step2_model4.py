"""Step 2, model 4: under 8,000 parameters, by at most 12 channels and a 1x1 class conv behind the pooling.
Another 1x1 conv, without ReLU or norm, squeezes the map to 6 channels before the first max-pool."""

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
            nn.Conv2d(1, 8, 3, padding=1),  # N 28->28  J 1  R 3
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Dropout(0.05),
            nn.Conv2d(8, 12, 3, padding=1),  # N 28->28  J 1  R 5
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
        )
        self.transition = nn.Sequential(
            nn.Conv2d(12, 6, 1),  # N 28->28  J 1  R 5
            nn.MaxPool2d(2, 2),  # N 28->14  J 2  R 6
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(6, 12, 3),  # N 14->12  J 2  R 10
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
            nn.Conv2d(12, 12, 3),  # N 12->10  J 2  R 14
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
            nn.Conv2d(12, 12, 3, padding=1),  # N 10->10  J 2  R 18
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
            nn.MaxPool2d(2, 2),  # N 10->5  J 4  R 20
        )
        self.block3 = nn.Sequential(
            nn.Conv2d(12, 12, 3),  # N 5->3  J 4  R 28
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
            nn.Conv2d(12, 12, 3, padding=1),  # N 3->3  J 4  R 36
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
        )
        self.output = nn.Sequential(
            nn.AvgPool2d(3, stride=2),  # N 3->1  J 4  R 44
            nn.Conv2d(12, 10, 1),  # N 1->1  J 4  R 44
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        x = self.transition(x)
        x = self.block2(x)
        x = self.block3(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=1)  # the source leaves dim out, which means 1 here
