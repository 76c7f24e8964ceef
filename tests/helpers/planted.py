"""Code of its own in a checkpoint, which leaves a mark where it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def plant(folder: Path, marker: Path) -> None:
    """Put code for the config, the tokenizer and the processor into a checkpoint, each referred to by an `auto_map`."""

    def edit(file: str, **auto_map: Any) -> dict[str, Any]:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "auto_map": {**content.get("auto_map", {}), **auto_map}}))
        return content

    config = edit(
        "config.json", AutoConfig="planted_config.Planted", AutoModelForImageTextToText="planted_model.Planted"
    )
    kind = config["architectures"][0].removesuffix("ForConditionalGeneration")
    edit("tokenizer_config.json", AutoTokenizer=[None, "planted_tokenizer.Planted"])
    processor = edit("processor_config.json", AutoProcessor="planted_processor.Planted")["processor_class"]
    planted = {
        "config": f"from transformers import {kind}Config as Stock",
        "model": f"from transformers import {kind}ForConditionalGeneration as Stock",
        "tokenizer": "from transformers import PreTrainedTokenizerFast as Stock",
        "processor": f"from transformers import {processor} as Stock",
    }
    for name, line in planted.items():
        # Names itself when it is imported. A subclass, so that the real class stays as it is.
        write = f"with open({str(marker)!r}, 'a') as file:\n    file.write('{name} ')\n"
        (folder / f"planted_{name}.py").write_text(f"{line}\n{write}\n\nclass Planted(Stock):\n    pass\n")
