"""Qwen3-VL."""

from __future__ import annotations

from lmms_eval.models.chat.qwen3_vl import Qwen3_VL as StockChat
from lmms_eval.models.simple.qwen3_vl import Qwen3_VL as StockSimple

from plam_eval.model_wrappers.hf import HFPlateauMixin


class PlamQwen3VL(HFPlateauMixin, StockSimple):
    model_id = "plam_qwen3_vl"


class PlamQwen3VLChat(HFPlateauMixin, StockChat):
    model_id = "plam_qwen3_vl"
