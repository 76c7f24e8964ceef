"""What a search may be asked for."""

from __future__ import annotations

import pytest

from plam_eval.evaluation.search.config import SearchConfig, SearchError, Span
from tests.helpers.searching import SMALL, config


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("0.5:1.0:0.1", [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("0.9", [0.9]),
        (0.9, [0.9]),
        ([0.1, 0.3, 0.2], [0.1, 0.3]),
        ("0.5:1.0", None),
    ],
)
def test_spans(written, values) -> None:
    span = Span.read(written)
    assert span.values() == values and Span.read(span.to_list()) == span


@pytest.mark.parametrize("written", ["", "a", "1:0.5", "0:1:0", "0:1:-1", "0:1:0.00001", "1:2:3:4", [], "nan", "0:inf"])
def test_what_is_no_span(written) -> None:
    with pytest.raises(ValueError, match=r"found|steps"):
        Span.read(written)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SearchError) as caught:
        config(model="plam_lava", select=None, trails=3, base_weight="much", rungs="0.5,0.2", rules="trimm")
    text = str(caught.value)
    for problem in (
        "plam_llava",
        "select: missing",
        "did you mean 'trials'",
        "base_weight",
        "rungs",
        "did you mean 'trim'",
    ):
        assert problem in text
    assert text.startswith("search: ")


def test_a_sampler_whose_state_is_a_pickle_is_refused_with_the_reason() -> None:
    for name in ("cmaes", "CMA-ES"):
        with pytest.raises(SearchError, match="pickle"):
            config(sampler=name)


@pytest.mark.parametrize("given", [{"layers": "sets"}, {"model_weight": "0.5:1.0"}])
def test_a_grid_needs_an_end(given) -> None:
    config(**given)
    with pytest.raises(SearchError, match="sampler grid"):
        config(sampler="grid", **given)


@pytest.mark.parametrize("given", [{"min_layers": 5, "max_layers": 4}, {"within": "2:4", "max_layers": 3}])
def test_sizes_have_to_fit(given) -> None:
    with pytest.raises(SearchError, match="layers"):
        config(**given)


def test_random_layers_are_a_control_unless_others_are_named() -> None:
    assert "random_layers" in config().sweep.controls
    assert config(controls="noise").sweep.controls == ("noise",)


def test_what_is_stored_reads_back(tmp_path) -> None:
    given = config(within="2:8", layers="sets", rungs="0.5", modules="qkvo,qk", rules="trim,dare:drop_rate:0.5")
    assert SearchConfig.of(given.to_dict(), "stored") == given
    file = tmp_path / "search.yaml"
    file.write_text("model: plam_llava\ntasks: [pope]\nselect: 20\ntrials: 5\n")
    assert SearchConfig.load(file, trials=7).options.trials == 7


def test_a_stored_search_names_no_file_that_is_read(tmp_path) -> None:
    with pytest.raises(SearchError, match="unknown key"):
        SearchConfig.of({**SMALL, "file": str(tmp_path / "elsewhere.yaml")}, "stored")
