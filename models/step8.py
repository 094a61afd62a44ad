"""Step 8, one-cycle learning rate: ReLU now before the norm, a bare transition conv, 18 channels at the end.
A second 1x1 conv joins the first behind the pooling. OneCycleLR overrides the optimizer's momentum of 0.7."""

import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
RECIPE: dict[str, object] = {
    "optimizer": {"name": "SGD", "lr": 0.015, "momentum": 0.7, "weight_decay": 0.0, "nesterov": False},
    "scheduler": {
        "name": "OneCycleLR",
        "step": "every batch",
        "max_lr": 0.015,
        "epochs": 15,
        "steps_per_epoch": 469,
        "total_steps": 7035,
    },
    "epochs": 15,
    "batch_size": 128,
    "train_augmentation": [
        {"name": "RandomRotation", "degrees": [-6.0, 6.0], "fill": [1]},
        {"name": "RandomAffine", "degrees": 7, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 10},
        {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    ],
    "normalize": {"mean": [0.1307], "std": [0.3081]},
    "seed": 1,
    "loss": "nll_loss on log_softmax output, mean over the batch",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),  # N 28->26  J 1  R 3
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Dropout(0.03),
            nn.Conv2d(8, 16, 3, bias=False),  # N 26->24  J 1  R 5
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.Dropout(0.03),
        )
        self.transition = nn.Sequential(
            nn.MaxPool2d(2, 2),  # N 24->12  J 2  R 6
            nn.Conv2d(16, 8, 1, bias=False),  # N 12->12  J 2  R 6
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 10, 3, bias=False),  # N 12->10  J 2  R 10
            nn.ReLU(),
            nn.BatchNorm2d(10),
            nn.Dropout(0.03),
            nn.Conv2d(10, 16, 3, bias=False),  # N 10->8  J 2  R 14
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.Dropout(0.03),
            nn.Conv2d(16, 18, 3, bias=False),  # N 8->6  J 2  R 18
            nn.ReLU(),
            nn.BatchNorm2d(18),
            nn.Dropout(0.03),
        )
        self.output = nn.Sequential(
            nn.AvgPool2d(6),  # N 6->1  J 2  R 28
            nn.Conv2d(18, 16, 1, bias=False),  # N 1->1  J 2  R 28
            nn.ReLU(),
            nn.BatchNorm2d(16),
            nn.Dropout(0.03),
            nn.Conv2d(16, 10, 1, bias=False),  # N 1->1  J 2  R 28
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        x = self.transition(x)
        x = self.body(x)
        x = self.output(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=-1)
