"""What a model is asked: which document, by which prompt, and under what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from plam_eval.harness.requests import generated_alike, is_padding, key_of, parts_of, prompt_of, with_arguments


def request(doc_id: int = 0, prompt: str = "Is there a dog?", settings: Any = None, **metadata: Any) -> Any:
    args = (prompt, len, {"max_new_tokens": 8} if settings is None else settings)
    return SimpleNamespace(task_name="pope", doc_id=doc_id, args=args, arguments=args, metadata=metadata)


def test_requests_say_what_they_ask():
    assert key_of(request(7)) == ("pope", 7)
    assert prompt_of(request(7)) == prompt_of(request(8)) != prompt_of(request(7, "Is there a cat?"))
    assert generated_alike(request(7), request(8))
    assert not generated_alike(request(7), request(8, settings={"max_new_tokens": 9}))
    assert is_padding(request(__padding_only__=True)) and not is_padding(request())


def test_other_arguments_are_a_copy_s():
    stock = request()
    own = with_arguments(stock, lambda argument: "other" if isinstance(argument, str) else argument)
    assert own.arguments == ("other", *stock.args[1:]) and stock.arguments == stock.args


def test_parts_are_of_one_task_in_order():
    requests = [SimpleNamespace(task_name=name, doc_id=number) for number, name in enumerate("aaabba")]
    parts = [[key_of(each) for each in part] for part in parts_of(requests, 2)]
    assert parts == [[("a", 0), ("a", 1)], [("a", 2)], [("b", 3), ("b", 4)], [("a", 5)]]
    assert list(parts_of([], 2)) == []
