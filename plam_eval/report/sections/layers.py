"""Layer by layer: what scans intervene in, and what layers are described to do, over one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from plam_eval.evaluation.attend.depth_plot import depth_figure
from plam_eval.evaluation.attend.folder import DEPTH_OF_LAYERS, DEPTH_OF_STREAM, MERGED, PLAIN, Attended
from plam_eval.evaluation.scan_folder import Scan, read_settings
from plam_eval.probing.closed import READERS
from plam_eval.report.blocks import Folded, Paragraph, Section, picture, records_of, table_block
from plam_eval.report.sections.scan import scan_section
from plam_eval.report.sources import Sources
from plam_eval.report.text import NONE, number, percent

_COLUMNS = (*DEPTH_OF_LAYERS, *DEPTH_OF_STREAM)
_CANNOT = (
    "Interventions and descriptions are two kinds of figure. Above, the image was taken away from some layer on, and "
    "the fall is what those layers need it for. Below, nothing was changed but where it says so: a layer that is seen "
    "to move the stream need not be needed, and one that leaves it as it is may be.",
    "Of the descriptions, layer contribution alone changes something: in one layer at a time image tokens stay as they "
    "were. The lens reads early layers in the basis of the last one, which they need not use: late agreement is "
    "evidence, early disagreement none.",
)


def layers_sections(sources: Sources) -> list[Section]:
    """A section for each look inside that has depth, with scans of its model; one for other scans of part of the text.

    Args:
        sources: what the page is of.
    """
    deep = {name: look.attended for name, look in sources.looks.items() if look.attended.depth is not None}
    sections, shown = [], set[str]()
    for name, attended in deep.items():
        scans = {key: scan for key, scan in sources.scans.items() if _of_one_model(scan, attended)}
        shown |= scans.keys()
        sections.append(_section(f": {name}" if len(deep) > 1 else "", attended, scans))
    rest = {name: scan for name, scan in sources.scans.items() if name not in shown and _is_partial(scan)}
    for name, scan in rest.items():
        sections.append(Section(f"Layer by layer: {name}", scan_section(scan, "").blocks))
    return sections


def _section(suffix: str, attended: Attended, scans: Mapping[str, Scan]) -> Section:
    blocks: list[Any] = [
        picture(
            depth_figure(attended, list(scans.values())),
            "What layers are needed for and what they do, over one axis of layers. Its numbers are in the table below.",
            "Interventions: accuracy when the image is closed from a layer on. Descriptions: what each layer does to "
            "image and text, plain and merged. Merged layers are shaded.",
        )
    ]
    if not scans:
        blocks.append(Paragraph("No scan of this model is among the folders: only descriptions are shown.", "note"))
    blocks.append(_table(attended))
    for name, scan in scans.items():
        if _is_partial(scan):
            title = f"The scan {name}: image closed to {READERS[scan.stages.closed_to]} alone"
            blocks.append(Folded(title, scan_section(scan, "").blocks))
    blocks += [Paragraph(text, "note") for text in _CANNOT]
    return Section(f"Layer by layer{suffix}", tuple(blocks))


def _is_partial(scan: Scan) -> bool:
    """Whether only some of the text loses the image."""
    return scan.stages.closed_to != "text"


def _of_one_model(scan: Scan, attended: Attended) -> bool:
    """By its checkpoint's name and its depth; a scan of a merged model is another one's."""
    settings = read_settings(scan.folder)
    same = settings["pretrained"] == attended.made_with["pretrained"] and settings["spec"] is None
    return same and scan.stages.num_layers == attended.num_layers


def depth_by_layer(attended: Attended) -> pd.DataFrame:
    """Means over tasks, each counting the same, of what layers do: columns setting, depth and those of a depth table.

    Args:
        attended: of a folder with depth.
    """
    assert attended.depth is not None
    columns = list(_COLUMNS)
    by_task = attended.depth.groupby(["setting", "depth", "task"], sort=False)[columns].mean()
    table = by_task.groupby(["setting", "depth"], sort=False).mean().reset_index()
    order = {name: place for place, name in enumerate(attended.settings)}
    return table.sort_values(["setting", "depth"], key=lambda own: own.map(order).fillna(own)).reset_index(drop=True)


def _table(attended: Attended) -> Any:
    rows = {(row["setting"], row["depth"]): row for row in records_of(depth_by_layer(attended))}

    def of(setting: str, column: str, form: Callable[[Any], str] = number) -> Callable[[int], str]:
        def show(depth: int) -> str:
            value = rows.get((setting, depth), {}).get(column, math.nan)
            return NONE if pd.isna(value) else form(value)

        return show

    columns: dict[str, Callable[[int], str]] = {
        "depth": str,
        "image drift": of(PLAIN, "image_drift"),
        "text drift": of(PLAIN, "text_drift"),
        "image to text": of(PLAIN, "image_text"),
        "contribution (nats)": of(PLAIN, "contribution", lambda value: number(value, 4)),
        "other next token": of(PLAIN, "contribution_flips", percent),
        "lens, plain (nats)": of(PLAIN, "lens_log_prob"),
    }
    if MERGED in attended.settings:
        columns |= {
            "lens, merged (nats)": of(MERGED, "lens_log_prob"),
            "merged to plain, image": of(MERGED, "image_cosine"),
            "merged to plain, text": of(MERGED, "text_cosine"),
        }
    merged = attended.merged_layers or range(attended.num_layers)
    beside = {edge for layer in merged for edge in (layer, layer + 1)}
    return table_block(
        "By depth, mean over tasks. Drift: cosine of tokens before and after the layer. Image to text: cosine of both "
        "clouds. Contribution: KL of the next token when the layer leaves image tokens as they were. Lens: log "
        "probability of the plain model's next token. Merged to plain: cosine of tokens. The last depth is behind the "
        "last layer",
        range(attended.num_layers + 1),
        columns,
        look=lambda depth: "" if depth in beside else "quiet",
    )
