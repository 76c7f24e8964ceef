"""Qwen2.5-VL."""

from __future__ import annotations

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as StockChat
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as StockSimple

from plam_eval.model_wrappers.hf import HFPlateauMixin


class PlamQwen25VL(HFPlateauMixin, StockSimple):
    model_id = "plam_qwen2_5_vl"


class PlamQwen25VLChat(HFPlateauMixin, StockChat):
    model_id = "plam_qwen2_5_vl"
