"""`rfcalc summary`: torchinfo's own view."""

import pytest

NET = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        def forward(self, x, y=None):
            print("a forward may talk")
            return self.body(x if y is None else x + y)
"""


@pytest.mark.parametrize("shape", ["1x12x12", "1x12x12,1x12x12", "x=1x12x12,y=1x12x12"])
def test_the_forms_of_an_input(rfcalc, write_design, shape):
    found = rfcalc("summary", write_design(NET), "--input", shape)
    assert found.code == 0
    assert "Conv2d (0)" in found.out
    assert "[1, 4, 10, 10]" in found.out
    assert "talk" not in found.out
