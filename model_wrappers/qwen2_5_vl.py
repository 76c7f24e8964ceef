"""Qwen2.5-VL."""

from __future__ import annotations

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL as StockChat
from lmms_eval.models.simple.qwen2_5_vl import Qwen2_5_VL as StockSimple

from plam_eval.model_wrappers.mixin import PlateauMixin


class PlamQwen25VL(PlateauMixin, StockSimple):
    model_id = "plam_qwen2_5_vl"


class PlamQwen25VLChat(PlateauMixin, StockChat):
    model_id = "plam_qwen2_5_vl"
