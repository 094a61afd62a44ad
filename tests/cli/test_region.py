"""`rfcalc region`: which input one unit sees."""

NET = """
    from torch import nn
    INPUT_SHAPE = (1, 12, 10)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, (3, 1), stride=2, padding=(1, 0)))
"""


def test_a_corner_hangs_over_the_border(rfcalc, write_design):
    found = rfcalc("region", write_design(NET), "--layer", "1", "--at", "0,2")
    assert found.code == 0
    assert found.out.splitlines() == [
        "1 (Conv2d) at 0,2 of 6x5 sees",
        "  H  0..2 (3)  unclipped -2..2 (5)  input 0..11",
        "  W  3..5 (3)  unclipped 3..5 (3)   input 0..9",
    ]


def test_a_position_that_sees_nothing(rfcalc, write_design):
    write_design(
        """
        from torch import nn
        import torch.nn.functional as F
        INPUT_SHAPE = (2, 4)
        class Net(nn.Module):
            def forward(self, x):
                return F.pad(x, (1, 1))
        """
    )
    found = rfcalc("region", "net.py", "--layer", "pad", "--at", "0")
    assert found.code == 0
    assert "nothing" in found.out
