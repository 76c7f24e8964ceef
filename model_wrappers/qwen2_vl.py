"""Qwen2-VL."""

from __future__ import annotations

from lmms_eval.models.simple.qwen2_vl import Qwen2_VL as StockSimple

from plam_eval.model_wrappers.hf import HFPlateauMixin


class PlamQwen2VL(HFPlateauMixin, StockSimple):
    model_id = "plam_qwen2_vl"
