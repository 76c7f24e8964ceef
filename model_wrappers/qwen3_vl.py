"""Qwen3-VL."""

from __future__ import annotations

from lmms_eval.models.chat.qwen3_vl import Qwen3_VL as StockChat
from lmms_eval.models.simple.qwen3_vl import Qwen3_VL as StockSimple

from plam_eval.model_wrappers.mixin import PlateauMixin


class PlamQwen3VL(PlateauMixin, StockSimple):
    model_id = "plam_qwen3_vl"


class PlamQwen3VLChat(PlateauMixin, StockChat):
    model_id = "plam_qwen3_vl"
