"""Step 0, the set-up: a plain stack of 3x3 convs with 6.4 million parameters, trained for 20 epochs."""

import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (1, 28, 28)
RECIPE: dict[str, object] = {
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False},
    "scheduler": None,
    "epochs": 20,
    "batch_size": 128,
    "train_augmentation": [],
    "normalize": {"mean": [0.1307], "std": [0.3081]},
    "seed": 1,
    "loss": "nll_loss on log_softmax output, mean over the batch",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)  # N 28->28  J 1  R 3
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)  # N 28->28  J 1  R 5
        self.pool1 = nn.MaxPool2d(2, 2)  # N 28->14  J 2  R 6
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)  # N 14->14  J 2  R 10
        self.conv4 = nn.Conv2d(128, 256, 3, padding=1)  # N 14->14  J 2  R 14
        self.pool2 = nn.MaxPool2d(2, 2)  # N 14->7  J 4  R 16
        self.conv5 = nn.Conv2d(256, 512, 3)  # N 7->5  J 4  R 24
        self.conv6 = nn.Conv2d(512, 1024, 3)  # N 5->3  J 4  R 32
        self.conv7 = nn.Conv2d(1024, 10, 3)  # N 3->1  J 4  R 40

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.pool1(x)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = self.pool2(x)
        x = F.relu(self.conv5(x))
        x = F.relu(self.conv6(x))
        x = self.conv7(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=-1)
