from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lmms_eval.utils import _smart_comma_split

from plam_eval.arguments import read_words, split_words, write_words
from plam_eval.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "a=1",
        "pretrained=x/y,plateau=none",
        'a={"b": [1, 2], "c": "d,e"},f=g',
        "a='b,c',d=\"e,f\"",
        'a="b\\",c",d=1',
        "a=[1,2],b=(3",
        "a=b=c,d=0",
    ],
)
def test_words_are_those_that_lmms_eval_reads(text: str) -> None:
    assert split_words(text) == [word.strip() for word in _smart_comma_split(text)]
    assert list(read_words(text, "model_args")) == [word.partition("=")[0] for word in split_words(text)]


def test_every_problem_is_named() -> None:
    with pytest.raises(InputError) as error:
        read_words("a=1,b, a=2,=3,weights=0,9,c= ,", "model_args")
    assert str(error.value).splitlines() == [
        "model_args: 6 problem(s)",
        "  - found 'b', expected key=value; if it belongs to a, put all of that value into quotes or braces",
        "  - a is given twice, as '1' and as '2'; give it once",
        "  - found '=3', expected key=value",
        "  - found '9', expected key=value; a decimal fraction has a point: write weights=0.9",
        "  - found 'c=', expected a value behind =; leave c out for its default",
        "  - found '', expected key=value; is there a comma too many?",
    ]
    assert read_words("  ", "model_args") == {} and read_words(" a = b ,c=d", "x") == {"a": "b", "c": "d"}


def test_arguments_may_be_a_mapping() -> None:
    given = {
        "pretrained": Path("a/b"),
        "dtype": torch.float32,
        "revision": None,
        "device": "cpu",
        "x": {"a": 1, "b": 2},
    }
    assert write_words(given, "model_args") == 'pretrained=a/b,dtype=float32,device=cpu,x={"a": 1, "b": 2}'
    with pytest.raises(InputError, match="model_args: layers: found '1,2'; a value cannot hold a comma"):
        write_words({"layers": "1,2"}, "model_args")
