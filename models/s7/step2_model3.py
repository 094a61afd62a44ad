"""Step 2, model 3: model 2 with dropout 0.05 after every norm."""

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
            nn.Conv2d(1, 4, 3, padding=1),  # N 28->28  J 1  R 3
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Dropout(0.05),
            nn.Conv2d(4, 8, 3, padding=1),  # N 28->28  J 1  R 5
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Dropout(0.05),
            nn.Conv2d(8, 12, 3, padding=1),  # N 28->28  J 1  R 7
            nn.ReLU(),
            nn.BatchNorm2d(12),
            nn.Dropout(0.05),
            nn.Conv2d(12, 16, 3, padding=1),  # N 28->28  J 1  R 9
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.Dropout(0.05),
            nn.MaxPool2d(2, 2),  # N 28->14  J 2  R 10
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),  # N 14->14  J 2  R 14
            nn.ReLU(),
            nn.BatchNorm2d(32),
            nn.Dropout(0.05),
            nn.Conv2d(32, 32, 3, padding=1),  # N 14->14  J 2  R 18
            nn.ReLU(),
            nn.BatchNorm2d(32),
            nn.Dropout(0.05),
            nn.MaxPool2d(2, 2),  # N 14->7  J 4  R 20
        )
        self.output = nn.Sequential(
            nn.Conv2d(32, 10, 3),  # N 7->5  J 4  R 28
            nn.AvgPool2d(5, stride=2),  # N 5->1  J 4  R 44
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        x = self.block2(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=1)
