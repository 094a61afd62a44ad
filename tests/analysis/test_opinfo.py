"""A fixed sample of torch's own samples: both levels against torch on the CPU. All of them: tests/bench/opinfo.py."""

import pytest
import torch

pytest.importorskip("expecttest", reason="torch.testing needs it")

from samples import FINE, Verdict, all_cases, judge, subjects

SUBJECTS = subjects()
# One or two of every family of rules; in each, the ways to call it and the dtypes it takes.
OPS = (
    "abs add clamp where mul argmax amin std cumsum logsumexp flip roll tril diag_embed as_strided "
    "index_select gather scatter take_along_dim masked_fill unfold stack split chunk unbind narrow permute movedim "
    "squeeze unflatten tensor_split repeat tile matmul einsum bmm linalg.inv fft.fft sort topk searchsorted "
    "nn.functional.conv2d nn.functional.conv_transpose1d nn.functional.max_pool2d nn.functional.avg_pool2d "
    "nn.functional.adaptive_avg_pool2d nn.functional.pad.reflect nn.functional.pixel_shuffle nn.functional.layer_norm "
    "nn.functional.unfold nn.functional.interpolate.bilinear nn.functional.linear nn.functional.embedding "
    "nn.functional.relu nn.functional.softmin nn.BatchNorm2d nn.Conv1d nn.LSTM nn.Linear nn.TransformerEncoderLayer"
).split()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPS)
def test_sample(name):
    if name not in SUBJECTS:
        pytest.skip("this torch has no samples of it")
    verdicts = [c if isinstance(c, Verdict) else judge(c) for c in all_cases(SUBJECTS[name], 2, [torch.float32])]
    wrong = [f"{v.kind}: {v.variant} {v.dtype} ({v.text}): {v.detail}" for v in verdicts if v.kind not in FINE]
    assert wrong == []
    assert any(v.kind.startswith("ok") or v.kind == "loose" for v in verdicts), "every sample was skipped"
