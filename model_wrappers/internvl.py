"""InternVL in HF format."""

from __future__ import annotations

from lmms_eval.models.chat.internvl_hf import InternVLHf as StockChat

from plam_eval.model_wrappers.mixin import PlateauMixin


class PlamInternVLChat(PlateauMixin, StockChat):
    model_id = "plam_internvl"
