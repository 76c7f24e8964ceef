"""LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision in HF format."""

from __future__ import annotations

from lmms_eval.models.chat.llava_hf import LlavaHf as StockChat
from lmms_eval.models.simple.llava_hf import LlavaHf as StockSimple

from plam_eval.model_wrappers.hf import HFPlateauMixin


class PlamLlava(HFPlateauMixin, StockSimple):
    model_id = "plam_llava"


class PlamLlavaChat(HFPlateauMixin, StockChat):
    model_id = "plam_llava"
