"""Model 4, dropout: model 3 with dropout 0.1 after every ReLU."""

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
        self.conv1 = nn.Conv2d(1, 8, 3, bias=False)  # N 28->26  J 1  R 3
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.drop1 = nn.Dropout(0.1)

        self.conv2 = nn.Conv2d(8, 16, 3, bias=False)  # N 26->24  J 1  R 5
        self.bn2 = nn.BatchNorm2d(16)
        self.relu2 = nn.ReLU()
        self.drop2 = nn.Dropout(0.1)

        self.conv3 = nn.Conv2d(16, 8, 1, bias=False)  # N 24->24  J 1  R 5
        self.bn3 = nn.BatchNorm2d(8)
        self.relu3 = nn.ReLU()
        self.drop3 = nn.Dropout(0.1)

        self.maxpool = nn.MaxPool2d(2, 2)  # N 24->12  J 2  R 6

        self.conv4 = nn.Conv2d(8, 16, 3, bias=False)  # N 12->10  J 2  R 10
        self.bn4 = nn.BatchNorm2d(16)
        self.relu4 = nn.ReLU()
        self.drop4 = nn.Dropout(0.1)

        self.conv5 = nn.Conv2d(16, 8, 3, bias=False)  # N 10->8  J 2  R 14
        self.bn5 = nn.BatchNorm2d(8)
        self.relu5 = nn.ReLU()
        self.drop5 = nn.Dropout(0.1)

        self.conv6 = nn.Conv2d(8, 16, 3, bias=False)  # N 8->6  J 2  R 18
        self.bn6 = nn.BatchNorm2d(16)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(0.1)

        self.conv7 = nn.Conv2d(16, 16, 3, bias=False)  # N 6->4  J 2  R 22
        self.bn7 = nn.BatchNorm2d(16)
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(0.1)

        self.avgpool = nn.AvgPool2d(4)  # N 4->1  J 2  R 28

        self.conv8 = nn.Conv2d(16, 10, 1, bias=False)  # N 1->1  J 2  R 28

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.relu1(self.bn1(self.conv1(x))))
        x = self.drop2(self.relu2(self.bn2(self.conv2(x))))
        x = self.drop3(self.relu3(self.bn3(self.conv3(x))))
        x = self.maxpool(x)
        x = self.drop4(self.relu4(self.bn4(self.conv4(x))))
        x = self.drop5(self.relu5(self.bn5(self.conv5(x))))
        x = self.drop6(self.relu6(self.bn6(self.conv6(x))))
        x = self.drop7(self.relu7(self.bn7(self.conv7(x))))
        x = self.avgpool(x)
        x = self.conv8(x)
        x = x.view(-1, 10)
        return F.log_softmax(x, dim=-1)
