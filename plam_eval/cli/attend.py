"""`plam attend`: where a model looks, plain and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plam_eval.cli.app import app
from plam_eval.cli.options import (
    MOST_DOCUMENTS,
    Exclude,
    GenKwargs,
    IncludePath,
    Json,
    Limit,
    Quiet,
    Sample,
    SampleSeed,
    Tasks,
    complete_wrapper,
    example,
)
from plam_eval.cli.speaking import working


@app.command(
    short_help="Where a model looks, plain and merged, layer by layer.",
    epilog=example(
        """plam attend --model plam_llava \\
    --model_args pretrained=llava-hf/llava-1.5-7b-hf,plateau=scan/plateau.yaml \\
    --tasks refcoco_bbox_rec_val --limit 200 --output attend"""
    ),
)
def attend(
    model: Annotated[
        str, typer.Option(help="One of our HF wrappers, such as plam_llava.", autocompletion=complete_wrapper)
    ],
    model_args: Annotated[
        str, typer.Option("--model_args", "--model-args", help="As for lmms-eval, with a plateau: key=value,...")
    ],
    tasks: Tasks = None,
    output: Annotated[Path, typer.Option(help="Folder of what is found; what was stopped there goes on.")] = Path(
        "attend"
    ),
    limit: Limit = None,
    offset: Annotated[
        int, typer.Option(help="Leave out as many documents of each task.", min=0, max=MOST_DOCUMENTS)
    ] = 0,
    sample: Sample = None,
    seed: SampleSeed = None,
    exclude: Exclude = None,
    settings: Annotated[
        str | None,
        typer.Option(
            help="plain, merged, rules that it is merged by instead, and specs by name or file; "
            "plain,merged,self_scale,normalized by default."
        ),
    ] = None,
    queries: Annotated[
        str, typer.Option(help="Whose attention: last (the prompt's last token), question or answer.")
    ] = "last",
    together: Annotated[
        int | None, typer.Option(help="Settings in memory at once, at most; all by default.", min=1)
    ] = None,
    show: Annotated[int, typer.Option(help="So many documents are drawn.", min=0)] = 6,
    select: Annotated[
        int | None,
        typer.Option(help="Documents of each task to choose layers on; half of them by default.", min=0),
    ] = None,
    depth: Annotated[bool, typer.Option("--depth", help="Also what each layer does.")] = False,
    scan: Annotated[
        list[Path] | None, typer.Option(help="Folder of a scan of the model, drawn above it; may be repeated.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="One image, in place of tasks.")] = None,
    question: Annotated[str | None, typer.Option(help="About the image.")] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="left,top,right,bottom of what is asked about, in pixels; may be repeated."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="File of boxes of documents, one a line, over those of datasets.")
    ] = None,
    gen_kwargs: GenKwargs = None,
    include_path: IncludePath = None,
    force_simple: Annotated[
        bool, typer.Option("--force_simple", "--force-simple", help="The wrapper's simple mode.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Where a model looks, plain, merged and under controls, on the same documents: layer by layer, with tests."""
    from plam_eval import api
    from plam_eval.report import tables

    with working(as_json, quiet, least_width=100, logs="INFO") as console:
        findings = api.attend(
            model,
            model_args,
            tasks or (),
            output,
            limit=limit,
            offset=offset,
            sample=sample,
            seed=seed or 0,
            exclude=exclude or (),
            settings=settings,
            queries=queries,
            together=together,
            show=show,
            select=select,
            depth=depth,
            scan=scan or (),
            image=image,
            question=question,
            box=box or (),
            boxes=boxes,
            gen_kwargs=gen_kwargs,
            include_path=include_path,
            force_simple=force_simple,
        )
        if findings is not None:
            console.data = findings.to_dict()
            tables.show_attention(findings, console)
