"""Qwen2-VL."""

from __future__ import annotations

from lmms_eval.models.simple.qwen2_vl import Qwen2_VL as StockSimple

from plam_eval.model_wrappers.mixin import PlateauMixin


class PlamQwen2VL(PlateauMixin, StockSimple):
    model_id = "plam_qwen2_vl"
