"""InternVL in HF format."""

from __future__ import annotations

from lmms_eval.models.chat.internvl_hf import InternVLHf as StockChat

from plam_eval.model_wrappers.hf import HFPlateauMixin


class PlamInternVLChat(HFPlateauMixin, StockChat):
    model_id = "plam_internvl"
