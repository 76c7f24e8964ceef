"""The model card of an export: its metadata, what it says of results, which runs it takes, and what it keeps quiet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from plam_eval.publishing.card.licences import Licence
from plam_eval.publishing.card.model_card import markdown, model_card
from plam_eval.publishing.card.results import ResultsError
from tests.helpers.exports import BASE, EXPORTED, MODEL, record_of, run_of, spec_of
from tests.helpers.nasty import NASTY
from tests.helpers.run_folders import changed, documents, write_run

CONFIG = {"model_type": "llava", "dtype": "float16"}
PLAIN = documents(["pope", "mmstar"], 40, right=20)
BETTER = changed(PLAIN, {("pope", n): ("yes", 1.0) for n in range(20, 30)})
HOME = "/home/some body/models"


def card_of(record: Any = None, licences: Any = None, **options: Any) -> ModelCard:
    options = {"model_config": CONFIG, **options}
    text = model_card(record or record_of(), licences=licences or {}, **options)
    card = ModelCard(text)
    assert yaml.safe_load(card.data.to_yaml()) == card.data.to_dict(), "the front matter is YAML"
    return card


def refused(*folders: Path, record: Any = None) -> list[str]:
    with pytest.raises(ResultsError, match="cannot stand on the card") as caught:
        card_of(record, results=folders)
    return caught.value.problems


def rows_of(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins with a header."""
    lines = text[text.index(f"\n| {header} |") + 1 :].splitlines()
    table = lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in [table[0], *table[2:]]]


# ---- metadata and text -----------------------------------------------------------------------------------------------


def test_what_the_hub_reads_of_it() -> None:
    both = {"model": Licence(("apache-2.0",)), "base": Licence(("apache-2.0",))}
    data = card_of(licences=both).data.to_dict()
    assert data == {
        "base_model": ["pair/mllm", "pair/base"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["merge", "plam-eval", "plateau"],
        "license": "apache-2.0",
    }


def test_what_a_reader_is_told() -> None:
    record = record_of()
    text = card_of(record, repository="me/merged").text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)\n```", text, re.DOTALL)[1]) == record.spec
    assert record.digest in text and record.command in text and "plam-eval 0.1.0" in text
    assert ["model.safetensors", "merged", EXPORTED["model.safetensors"], "1,234"] in rows_of(text, "file")
    assert ["pair/base (commit 222222222222)", "model.safetensors", "0c" * 32] in rows_of(text, "of")
    for said in ("stored in float16, so a load in bfloat16", r"rope\_theta differs", "layers 6 to 7", "# me/merged"):
        assert said in text, said
    assert 'from_pretrained("me/merged", dtype="auto")' in text and "vllm serve me/merged --dtype float16" in text
    assert "trust" not in text and "## Results" not in text


def test_remote_code_is_asked_for_where_there_is_some() -> None:
    text = card_of(model_config={"auto_map": {"AutoModel": "modeling.Own"}}).text
    assert text.count("trust_remote_code=True") == 2 and "--trust-remote-code" in text and "--dtype" not in text


@pytest.mark.parametrize(
    ("model", "base", "fields", "said"),
    [
        (Licence(("mit",)), Licence(), {}, ["mit", "not stated"]),
        (Licence(), Licence(file="LICENSE.txt"), {}, ["not stated", "not stated; a file LICENSE.txt lies"]),
        (Licence(("mit",)), Licence(("apache-2.0",)), {"license": "other"}, ["mit", "apache-2.0"]),
        (
            Licence(("other",), "gemma-x", "https://x.org/l"),
            Licence(("other",), "gemma-x", "https://x.org/l"),
            {"license": "other", "license_name": "gemma-x", "license_link": "https://x.org/l"},
            ["other (gemma-x, https://x.org/l)"],
        ),
        (Licence(("other",), "one"), Licence(("other",), "two"), {"license": "other"}, ["other (one)", "other (two)"]),
        (Licence(("a b\n- c",)), Licence(("a b\n- c",)), {"license": "other"}, [r"a b\\n- c"]),
    ],
)
def test_licences_are_repeated_and_none_is_made_up(model: Any, base: Any, fields: Any, said: list[str]) -> None:
    card = card_of(licences={"model": model, "base": base})
    assert {key: value for key, value in card.data.to_dict().items() if key.startswith("license")} == fields
    told = [row[1] for row in rows_of(card.text, "source")[1:]]
    for words in said:
        assert any(words in cell for cell in told), told


OLD = {"name": "pair/old", "hub": "pair/old", "commit": "4" * 40, "sha256": "ef" * 32}


def with_ancestor(**changes: Any) -> Any:
    spec = spec_of(**{"rule": "ties", "ancestor": "pair/old", **changes})
    inputs = {"model": {}, "base": {}, "ancestor": {"model.safetensors": "0d" * 32}}
    return record_of(spec, ancestor=OLD, inputs=inputs)


def test_a_third_source_is_named_as_the_two_others_are() -> None:
    three = {side: Licence(("mit",)) for side in ("model", "base", "ancestor")}
    card = card_of(with_ancestor(), licences=three)
    data = card.data.to_dict()
    assert data["base_model"] == ["pair/mllm", "pair/base", "pair/old"] and data["license"] == "mit"
    assert ["pair/old (commit 444444444444)", "mit"] in rows_of(card.text, "source")
    assert ["pair/old (commit 444444444444)", "model.safetensors", "0d" * 32] in rows_of(card.text, "of")
    assert "and of pair/old (commit 444444444444), the ancestor that both were tuned from" in card.text
    assert "tensors of all three sources" in card.text and "tensors of both sources" in card_of().text
    for licence, fields in ((Licence(("gpl",)), {"license": "other"}), (Licence(), {})):
        told = card_of(with_ancestor(), licences={**three, "ancestor": licence}).data.to_dict()
        assert {key: value for key, value in told.items() if key == "license"} == fields


def test_a_folder_of_an_ancestor_is_told_without_its_path() -> None:
    folder = {"name": f"{HOME}/llama", "folder": f"{HOME}/llama", "fingerprint": "f"}
    record = with_ancestor(ancestor=f"{HOME}/llama").model_copy(update={"ancestor": folder})
    card = card_of(record)
    assert HOME not in str(card) and "The ancestor was a folder (llama)" in card.text
    assert "of the spec with the paths of its" in card.text
    assert card.data.to_dict()["base_model"] == ["pair/mllm", "pair/base"]


def test_runs_with_another_ancestor_are_refused(tmp_path: Path) -> None:
    record = with_ancestor()
    spec = spec_of(rule="ties", ancestor="pair/old")
    run_of(tmp_path / "merged", BETTER, spec, ancestor=OLD)
    run_of(tmp_path / "control", PLAIN, spec_of(rule="from_ancestor", ancestor="pair/old"), ancestor=OLD)
    run_of(tmp_path / "scale", PLAIN, spec_of(rule="self_scale"))
    text = card_of(record, results=[tmp_path / name for name in ("merged", "control", "scale")]).text
    assert "from_ancestor: " in text.replace("\\", "") and "self_scale: " in text.replace("\\", "")
    other = {**OLD, "sha256": "99" * 32}
    problems = refused(
        run_of(tmp_path / "other", BETTER, spec, ancestor=other),
        run_of(tmp_path / "others control", PLAIN, spec_of(rule="from_ancestor", ancestor="pair/old"), ancestor=other),
        record=record,
    )
    assert ["another ancestor (pair/old)" in problem for problem in problems] == [True, True]


def test_folders_are_named_without_their_paths_and_are_no_hub_ids() -> None:
    base = {"name": f"{HOME}/vicuna", "folder": f"{HOME}/vicuna", "fingerprint": "f"}
    cached = f"/home/some body/.cache/hub/models--pair--mllm/snapshots/{'1' * 40}"
    model = {"name": cached, "folder": cached, "commit": "1" * 40, "sha256": "ab" * 32}
    record = record_of(
        spec_of(base_model=base["name"], source=f"a scan in {HOME}/scan", evidence={"scan": f"{HOME}/scan"}),
        model=model,
        base=base,
        command=f"plam export --model '{cached}' --plateau ~/specs/p.yaml --output '{HOME}/out' 'base={HOME}/vicuna'",
        notes=(f"read from {HOME}/vicuna", "from '/mnt/a disk/x.bin'"),
    )
    card = card_of(record)
    text = str(card)
    for secret in ("/home", "some body", " body", ".cache", "~/specs", "a disk", "/mnt"):
        assert secret not in text, secret
    assert card.data.to_dict()["base_model"] == ["pair/mllm"], "a snapshot of the hub's cache has a name there"
    assert f"plam export --model pair/mllm@{'1' * 40} --plateau p.yaml --output out base=vicuna" in text
    assert "of the spec with the paths of its" in text and "paths of its" not in card_of().text
    assert "The base LLM was a folder (vicuna), so no hub id is given" in text
    both = card_of(record_of(spec_of(base_model=base["name"]), model={**base, "folder": f"{HOME}/a"}, base=base))
    assert not {"base_model", "base_model_relation"} & both.data.to_dict().keys()


def test_what_was_read_becomes_no_markup() -> None:
    hostile = "</td><script>a|b</script> `x` *y* [z](http://z) \n---\n# H \n```\n{{ md }} {% raw %}"
    spec = spec_of(source=hostile)
    record = record_of(spec, notes=(hostile, NASTY), versions={"x": hostile}, command=f"plam export '{hostile}'")
    card = card_of(record, {"model": Licence((hostile,), hostile), "base": Licence((hostile,), hostile)})
    assert card.data.to_dict()["license"] == "other"
    inside: list[str] = []
    outside: list[str] = []
    fence = None
    for line in card.text.splitlines():
        if fence is None and (opened := re.match(r"(`{3,})\w+$", line)):
            fence = opened[1]
        elif line == fence:
            fence = None
        else:
            (outside if fence is None else inside).append(line)
    assert fence is None and not any("<script" in line or "# H" in line[:4] for line in outside)
    assert not any("\x1b" in line or "\u202e" in line for line in (*inside, *outside))
    assert [line for line in outside if line.startswith("# ")] == ["# mllm merged with base"]
    assert {len(row) for row in rows_of(card.text, "source")} == {2}
    assert markdown("a|b\nc") == r"a\|b\\nc"


# ---- results ---------------------------------------------------------------------------------------------------------


def test_scores_stand_beside_plain_with_intervals(tmp_path: Path) -> None:
    plain, merged = run_of(tmp_path / "a", PLAIN), run_of(tmp_path / "b", BETTER, spec_of())
    text = card_of(results=[plain, merged]).text
    scores = rows_of(text, "task")
    assert ["pope", "plain", "40", "40", "0.500", "0.352 to 0.648"] in scores
    assert ["pope", "merged", "40", "40", "0.750", "0.598 to 0.858"] in scores
    compared = rows_of(text[text.index("### merged against plain") :], "task")
    assert [row[:5] for row in compared[1:]] == [
        ["pope", "40", "0.500", "0.750", "+0.250"],
        ["mmstar", "40", "0.500", "0.500", "+0.000"],
        ["mean over tasks", "80", "0.500", "0.625", "+0.125"],
    ]
    assert compared[1][6:] == ["10", "0", "0.002"] and re.fullmatch(r"\+0\.\d{3} to \+0\.\d{3}", compared[1][5])
    ran = rows_of(text, "run | of")
    assert [row[:2] for row in ran[1:]] == [["plain", "the source"], ["merged", "a merge in memory"]]
    assert "limit 8" in ran[1], "what was left out of the benchmark is said"


def test_controls_and_runs_of_the_exported_files(tmp_path: Path) -> None:
    exported = {"name": "merged", "folder": "/x/merged", "files": EXPORTED}
    folders = [
        run_of(tmp_path / "plain", PLAIN),
        run_of(tmp_path / "export", BETTER, checkpoint=exported),
        run_of(tmp_path / "scale", PLAIN, spec_of(rule="self_scale")),
        run_of(tmp_path / "noise", PLAIN, spec_of(rule="noise", seed=3)),
    ]
    text = card_of(results=folders).text
    assert "### export against plain" in text
    controls = rows_of(text, "merge")
    assert [row[:2] for row in controls[1:]] == [["export", r"self\_scale"], ["export", "noise 3"]]
    assert controls[1][4:7] == ["0.625", "0.500", "+0.125"]
    assert "a random change of the same size" in text and "the exported files" in text


def test_a_sweep_gives_its_cells_of_this_merge(small_sweep: Path) -> None:
    model = {key: value for key, value in MODEL.items() if key != "commit"}
    text = card_of(record_of(spec_of(model=None), model=model), results=[small_sweep]).text
    ran = rows_of(text, "run | of")
    assert [row[0] for row in ran[1:]] == ["plain", "merged", r"self\_scale"]
    assert {row[ran[0].index("date")] for row in ran[1:]} == {"2026-01-01"}
    assert "### merged against plain" in text and "### Beside controls" in text
    other = record_of(spec_of(layer_range=[1, 2]))
    assert "has no finished cell of this merge" in refused(small_sweep, record=other)[0]


def test_draws_of_random_layers_are_a_note_and_no_runs_of_the_card(tmp_path: Path) -> None:
    from tests.helpers.run_folders import write_sweep

    given: dict[str, Any] = {"layers": "6:8", "controls": "self_scale,random_layers", "draws": 3}
    cells = dict.fromkeys((cell.name for cell in write_sweep(tmp_path, {}, **given).cells), PLAIN)
    write_sweep(tmp_path, cells | {"layers-6-8_qkvo_0.9+0.3": BETTER}, **given)
    text = card_of(results=[tmp_path]).text
    assert [row[0] for row in rows_of(text, "run | of")[1:]] == ["plain", "merged", r"self\_scale"]
    assert "The merge beside the same in other layers. Random layers: it does better than 3 of 3 draws" in text


def test_a_choice_on_the_reported_documents_is_said(tmp_path: Path) -> None:
    from tests.helpers.run_folders import write_sweep

    cells = {"plain": PLAIN, "layers-6-8_qkvo_0.9+0.3": BETTER, "layers-0-8_qkvo_0.9+0.3": PLAIN}
    write_sweep(tmp_path / "all", cells)
    write_sweep(tmp_path / "held-out", cells, select=5)
    assert "best of 2 that a sweep tried, chosen on the very documents" in card_of(results=[tmp_path / "all"]).text
    text = card_of(results=[tmp_path / "held-out"]).text
    assert "chosen on other documents than those reported here (5 of pope, 5 of mmstar)" in text
    assert rows_of(text, "task")[1][2] == "35", "what was chosen on is not reported"


def test_a_sweep_and_a_comparison_that_left_out_other_documents_stand_on_one_card(tmp_path: Path) -> None:
    from tests.helpers.run_folders import write_sweep

    folder = tmp_path / "sweep"
    write_sweep(folder, {"plain": PLAIN, "layers-6-8_qkvo_0.9+0.3": BETTER}, select=5)
    plain, merged = run_of(tmp_path / "runs" / "a", PLAIN), run_of(tmp_path / "runs" / "b", BETTER, spec_of())
    alone = run_of(tmp_path / "alone", BETTER, spec_of())
    text = card_of(results=[folder, tmp_path / "runs", alone]).text
    pairs = {part.partition("\n")[0]: rows_of(part, "task")[1][1] for part in text.split("### ") if " against " in part}
    titles = ("merged against plain", "merged (2) against plain (2)", "merged (3) against plain (2)")
    assert pairs == dict(zip(titles, ("35", "40", "40"), strict=True))
    (problem,) = refused(folder, alone)
    assert "5 documents in merged (2) only" in problem, "which fits no plain run"
    (problem,) = refused(folder, plain)
    assert "5 documents in plain (2) only" in problem and merged.is_dir()


@pytest.mark.parametrize("name", ["..__export__plam-plain", ".__export__plam-plain"])
def test_runs_of_relative_paths_are_not_hidden(tmp_path: Path, name: str) -> None:
    run_of(tmp_path / "runs" / name, PLAIN)
    run_of(tmp_path / "runs" / ".trash", BETTER, spec_of())
    ran = rows_of(card_of(results=[tmp_path / "runs"]).text, "run | of")
    assert [row[0] for row in ran[1:]] == ["plain"]


def test_every_run_of_something_else_is_refused_at_once(tmp_path: Path) -> None:
    stock = run_of(tmp_path / "stock", PLAIN)
    file = next(stock.glob("*_results.json"))
    results = json.loads(file.read_text())
    del results["plam_eval"]
    file.write_text(json.dumps(results))
    changed_block = run_of(tmp_path / "edited", PLAIN, spec_of(), digest="00" * 32)
    other = {**MODEL, "sha256": "ff" * 32, "commit": "3" * 40}
    problems = refused(
        run_of(tmp_path / "other merge", PLAIN, spec_of(layer_range=[2, 8])),
        run_of(tmp_path / "other control", PLAIN, spec_of(layer_range=[2, 8], rule="self_scale")),
        run_of(tmp_path / "other model", PLAIN, spec_of(), checkpoint=other),
        run_of(tmp_path / "other base", PLAIN, spec_of(), base={**BASE, "sha256": "ee" * 32}),
        run_of(tmp_path / "other plain", PLAIN, checkpoint=other),
        run_of(tmp_path / "half export", PLAIN, checkpoint={"name": "m", "files": {"config.json": "0a" * 32}}),
        run_of(tmp_path / "unhashed", PLAIN, checkpoint={"name": "pair/mllm"}),
        stock,
        changed_block,
        tmp_path / "none",
    )
    said = [
        "another merge",
        "another merge",
        "something else",
        "another base",
        "something else",
        "too little to tell",
        "too little to tell",
        "stock models",
        "not that of the spec",
        "no such folder",
    ]
    assert len(problems) == len(said)
    for problem, words in zip(problems, said, strict=True):
        assert words in problem, problem


def test_runs_that_were_asked_otherwise_are_refused(tmp_path: Path) -> None:
    asked = [{**document, "prompt": "else?"} for document in BETTER]
    problems = refused(run_of(tmp_path / "a", PLAIN), run_of(tmp_path / "b", asked, spec_of()))
    assert len(problems) == 1 and "the prompts of 40 documents differ" in problems[0]


def test_a_run_that_is_a_link_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "real", PLAIN)
    (tmp_path / "given").mkdir()
    for file in (tmp_path / "real").iterdir():
        (tmp_path / "given" / file.name).symlink_to(file)
    assert "expected a file inside" in refused(tmp_path / "given")[0]


def test_tasks_that_one_side_lacks_are_compared_on_the_others(tmp_path: Path) -> None:
    only = [document for document in BETTER if document["task"] == "pope"]
    plain, merged = run_of(tmp_path / "a", PLAIN), run_of(tmp_path / "b", only, spec_of())
    text = card_of(results=[plain, merged]).text
    assert [row[0] for row in rows_of(text[text.index("### merged against") :], "task")[1:]] == ["pope"]


def test_the_same_run_counts_once(tmp_path: Path) -> None:
    plain = run_of(tmp_path / "a", PLAIN)
    write_run(tmp_path / "a", PLAIN, provenance={"checkpoint": MODEL, "digest": None})
    assert len(rows_of(card_of(results=[plain, next(plain.glob("*_results.json"))]).text, "run | of")) == 2
