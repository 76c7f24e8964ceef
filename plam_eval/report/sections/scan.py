"""Where the image is used: the masking curve and its stages."""

from __future__ import annotations

from typing import Any

from plam_eval.evaluation import scan_folder
from plam_eval.evaluation.scan_folder import Scan
from plam_eval.evaluation.stats import OVERALL
from plam_eval.probing.closed import READERS
from plam_eval.probing.plot import curve_figure
from plam_eval.report.blocks import Listing, Paragraph, Section, picture, records_of, table_block
from plam_eval.report.text import NONE, count_of, interval, number, percent, signed


def scan_section(scan: Scan, suffix: str) -> Section:
    """The curve as a figure and a table, and the stages that follow from it.

    Args:
        scan: a finished one.
        suffix: of the section's title, which tells it from other scans' on the page.
    """
    curve, stages = scan.curve, scan.stages
    whole, reader = stages.closed_to == "text", READERS[stages.closed_to]
    kl = f"layers {stages.kl_cut}:{stages.num_layers}" if stages.kl_cut < stages.num_layers else stages.kl_in_words
    ends = "the image is hidden in every layer" if whole else f"the image is closed to {reader} in every layer"
    table = curve.table()
    last = stages.num_layers
    blocks: list[Any] = [
        picture(
            curve_figure(curve, stages),
            "Accuracy, parsable answers and KL divergence by cut layer. Its numbers are in the table below.",
            f"At the left {ends}, at the right in none. Above: accuracy, and the 95% "
            "interval of its mean over tasks. Below: the share of answers in the form asked for, and how far the first "
            "answer token's distribution is from that of the unmasked model.",
        ),
        Paragraph(f"Second opinion, by KL at or under {stages.kl_threshold:g} nats: {kl}.", "note"),
        table_block(
            f"Mean over {count_of(len(curve.tasks), 'task')} of {count_of(sum(curve.documents.values()), 'document')}",
            records_of(table[table["task"] == OVERALL]),
            {
                ("image seen in" if whole else "image open in"): lambda row: (
                    f"layers 0:{row['cut']}" if row["cut"] else "no layer"
                ),
                "accuracy": lambda row: number(row["accuracy"]),
                "95%": lambda row: interval(row["low"], row["high"], plus=False),
                "against unmasked": lambda row: NONE if row["cut"] == last else signed(row["difference"]),
                "95% of that": lambda row: (
                    NONE if row["cut"] == last else interval(row["difference_low"], row["difference_high"])
                ),
                "parsable": lambda row: percent(row["parsable"]),
                "KL (nats)": lambda row: number(row["kl"], 4),
                **({"layers from here": lambda row: stages.stage_from(int(row["cut"]))} if whole else {}),
            },
            words={"layers from here"} if whole else (),
            look=lambda row: "total" if row["cut"] == last else "",
        ),
    ]
    if not whole:
        blocks.append(Paragraph(f"The image is closed to {reader} alone: this is no plateau, and no spec follows."))
    spec = scan.folder / scan_folder.SPEC
    if whole and spec.is_file():
        blocks.append(Listing("The spec that follows from it", tuple(spec.read_text(encoding="utf-8").splitlines())))
    title = "Where the image is used" if whole else f"Where {reader} uses the image"
    return Section(f"{title}{suffix}", tuple(blocks))
