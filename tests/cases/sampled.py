"""Cases that read where the data point, or whose results have no gradient."""

from __future__ import annotations

import torch
from torchvision.ops import deform_conv2d, nms

from cases.registry import LINE, first_of, fn, vision_ops, weights

# reading where the data point: all four corners of a 2x2 map are read at its centre
fn(
    "grid_sampler_2d",
    lambda x, g: torch.grid_sampler_2d(x, g, 0, 0, True),
    (3, 2, 2),
    g=lambda: torch.zeros(1, 3, 4, 2),
)
fn(
    "grid_sampler_3d",
    lambda x, g: torch.grid_sampler_3d(x, g, 0, 0, True),
    (3, 2, 2, 2),
    g=lambda: torch.zeros(1, 2, 2, 3, 3),
)
_ROI = torch.tensor([[0.0, 0, 0, 3, 3]])
fn("roi_align", lambda x, b: first_of(vision_ops.roi_align(x, b, 1.0, 2, 2, -1, False)), b=_ROI.clone)
fn("roi_pool", lambda x, b: first_of(vision_ops.roi_pool(x, b, 1.0, 2, 2)), b=_ROI.clone)
fn("ps_roi_align", lambda x, b: first_of(vision_ops.ps_roi_align(x, b, 1.0, 2, 2, 1)), (4, 7, 9), b=_ROI.clone)
fn("ps_roi_pool", lambda x, b: first_of(vision_ops.ps_roi_pool(x, b, 1.0, 2, 2)), (4, 7, 9), b=_ROI.clone)
fn(
    "deform_conv2d",
    lambda x, o, w: deform_conv2d(x, o, w, padding=1),
    o=lambda: torch.zeros(1, 18, 7, 9),
    w=weights(3, 2, 3, 3),
)
fn("nms", lambda x: nms(torch.cat([x[0], x[0] + 1], 1).abs(), x[0, :, 0], 0.5).float(), (5, 2))

fn("nonzero", lambda x: torch.nonzero(x > 1).float().sum() + torch.argwhere(x > 1).float().sum() + x.mean())
fn("masked_select", lambda x: torch.masked_select(x, x > -1e9))
fn("unique", lambda x: torch.unique(x > 1).float().sum() + x.mean(), LINE)
fn("unique dim", lambda x: torch.unique(x > 1, dim=2).float().sum() + x.mean(), LINE)
fn("unique_consecutive", lambda x: torch.unique_consecutive(x > 1).float().sum() + x.mean(), LINE)
fn("bincount", lambda x: torch.bincount((x * 5).long().abs().flatten(), minlength=10).float().sum() + x.mean(), LINE)
fn("histc", lambda x: torch.histc(x, 5).sum() + x.mean(), LINE)
fn("isin", lambda x: torch.isin(x, torch.ones(3)).float().sum() + x.mean(), LINE)
fn("searchsorted", lambda x: torch.searchsorted(x.sort(2)[0], x).float(), LINE)
fn("multinomial", lambda x: torch.multinomial(x[0].abs(), 2).float().sum() + x.mean(), LINE)
