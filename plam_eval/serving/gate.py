"""What a request over HTTP may name: which specs, and which base models and ancestors.

A request comes from somebody who may not be the one who started the server. So it names packaged specs, writes a spec
out, or names a file below one folder, and its base and its ancestor are such as the server was started with or was told
to allow. Of a file that is no valid spec, no answer shows anything: its name in a request must not be a way to read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plam_eval.errors import OutsideError, hint
from plam_eval.files import inside
from plam_eval.spec import PlateauSpec, load_spec, packaged_specs

SPECS = "PLAM_SPECS"
"""Environment variable: the folder whose files a request may name as `plateau`."""
BASES = "PLAM_BASES"
"""Environment variable: what a request may name as base or ancestor: hub ids, folders with what is below, by commas."""
MAX_BYTES = 262_144
"""Of a request, and of a spec file that a request names."""
MAX_DEPTH = 32
MAX_LENGTH = 4096
"""Characters of a text, and entries of a list or an object."""

_EXPECTED = {
    "base_model": "a hub id or a folder",
    "layer_range": "[start, end] in whole numbers, end exclusive",
    "layers": "a list of layers",
    "modules": "a list of module names",
    "weights": "{model: number, base_model: number}, or two numbers each",
    "rule": "the name of a rule",
    "ancestor": "a hub id or a folder",
    "parameters": "numbers by name",
    "seed": "a whole number, 0 or more",
}


@dataclass(frozen=True)
class Gate:
    """What this server lets requests name.

    Attributes:
        specs: the folder of specs, resolved; None when there is none.
        ids: hub ids of allowed bases and ancestors.
        bases: folders of allowed ones, resolved.
        below: folders below which every folder is an allowed one, resolved.
    """

    specs: Path | None = None
    ids: frozenset[str] = frozenset()
    bases: frozenset[Path] = frozenset()
    below: tuple[Path, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str], *named: str) -> Gate:
        """The gate of a server.

        Args:
            environment: of its process.
            *named: base and ancestor of the spec that it was started with.

        Raises:
            ValueError: a variable names a folder that is none.
        """
        specs = environment.get(SPECS)
        folder = _folder(specs) if specs else None
        if specs and folder is None:
            raise ValueError(f"{SPECS}={specs}: no such folder; expected the folder whose specs requests may name")
        ids, below = set[str](), list[Path]()
        for entry in (entry.strip() for entry in environment.get(BASES, "").split(",") if entry.strip()):
            allowed = _folder(entry)
            if allowed is not None:
                below.append(allowed)
            elif entry.startswith((".", "/", "~")) or entry.count("/") > 1:
                raise ValueError(f"{BASES}: {entry!r} is no folder; expected hub ids and folders, separated by commas")
            else:
                ids.add(entry)
        started = {name: _folder(name) for name in named}
        ids |= {name for name, opened in started.items() if opened is None}
        return cls(folder, frozenset(ids), frozenset(filter(None, started.values())), tuple(below))

    def spec(self, plateau: object, overrides: Mapping[str, Any]) -> PlateauSpec | None:
        """The spec that a request asks for; None for the plain model.

        Args:
            plateau: a name, a file below the folder of specs, or a spec's content.
            overrides: of the spec, as in model_args.

        Raises:
            ValueError: (SpecError among others) the request may not name it, or it is none. The message holds what
                the request said, and nothing of a file that is not a valid spec.
        """
        named: str | None = None
        source: Any = plateau
        if isinstance(plateau, str):
            source = plateau.strip()
            if source.lower() != "none" and source not in packaged_specs():
                named, source = source, self._file(source)
        elif not isinstance(plateau, Mapping):
            raise ValueError(
                f'plateau: found {_kind(plateau)}, expected a name, a spec as a JSON object, or "none" for the plain '
                "model"
            )
        spec = load_spec(source, overrides)
        if spec is None:
            return None
        sides = [("base_model", "base", spec.base_model)]
        if spec.needs_ancestor:
            sides.append(("ancestor", "ancestor", str(spec.ancestor)))
        else:  # nothing opens it, and nobody need be told of it
            spec = spec.model_copy(update={"ancestor": None})
        refused = []
        for field, side, name in sides:
            if not self.allows(name):
                from_file = named is not None and overrides.get(side) is None
                asked = f"the {side} that {named!r} names" if from_file else repr(name)
                refused.append(
                    f"{field}: {asked} is not allowed; expected the {side} that the server was started with, or one "
                    f"that {BASES} in its environment allows"
                )
        if refused:
            raise ValueError("; ".join(refused))
        return spec

    def allows(self, name: str) -> bool:
        """Whether a request may name it as a base or an ancestor. What is a folder is one, also if it looks like an id.

        Args:
            name: hub id or folder, as it is written.
        """
        folder = _folder(name)
        if folder is None:
            return name in self.ids
        return folder in self.bases or any(folder.is_relative_to(parent) for parent in self.below)

    def _file(self, name: str) -> PlateauSpec:
        """The spec in a file below the folder of specs, whatever it would be overridden with valid by itself."""
        origin = f"plateau {name[:200]!r}"
        if self.specs is None:
            raise ValueError(
                f"{origin}: no packaged spec of that name ({hint(name[:200], [*packaged_specs(), 'none'])}), and the "
                f"server was started without {SPECS}, a folder whose files requests may name. Send the spec as a JSON "
                "object instead"
            )
        try:
            path = inside(self.specs, name, origin).resolve()
        except (OutsideError, OSError, ValueError, RuntimeError):  # its message says where a symbolic link leads
            raise ValueError(
                f"{origin}: expected a packaged name, or a file inside the server's folder of specs, relative to it"
            ) from None
        try:
            readable = path.is_file() and path.stat().st_size <= MAX_BYTES
        except OSError:
            readable = False
        if not readable:
            raise ValueError(
                f"{origin}: no packaged spec and no file of that name (of at most {MAX_BYTES} bytes) in the server's "
                "folder of specs"
            )
        try:
            spec = load_spec(path)
        except Exception as error:  # whatever it is, its text may quote the file
            raise ValueError(f"{origin}: {_unquoted(error)}") from None
        assert spec is not None
        try:
            _check_values(spec.evidence)
        except ValueError as error:
            raise ValueError(f"{origin}: evidence: {error}") from None
        return spec


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    constants = [word for word, constant in (("null", None), ("true", True), ("false", False)) if value is constant]
    kinds = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return constants[0] if constants else kinds.get(type(value), type(value).__name__)


def _folder(name: str | Path) -> Path | None:
    """The folder that this name opens, resolved; None if it opens none. The same look as that of `Checkpoint.open`."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _unquoted(error: Exception) -> str:
    """Which known keys of a spec file are at fault, and what each should hold, without a word of the file."""
    problems = [str(problem) for problem in getattr(error, "problems", [])]
    named = [problem.partition(":")[0].split(".")[0] for problem in problems]
    fields = [field for field in PlateauSpec.model_fields if field in named]
    remedies = [f"{field}: expected {_EXPECTED.get(field, 'another value')}" for field in fields]
    if not problems or any(name not in fields for name in named):
        remedies.append(f"expected a YAML mapping with no other keys than {', '.join(PlateauSpec.model_fields)}")
    return f"the file is no valid plateau spec ({'; '.join(remedies)}); its content is not shown here"


def parse_request(body: bytes) -> dict[str, Any]:
    """The JSON object that a request holds, checked for what a spec never needs and what later steps cannot take.

    Args:
        body: of the request.

    Raises:
        ValueError: not UTF-8, not JSON, no object, a key given twice, NaN or an infinity, a number beyond 64 bits, or
            deeper or longer than the limits of this module.
    """
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"nested too deeply; expected at most {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}; expected JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has thousands of digits; expected whole numbers of at most 64 bits") from None
        raise
    if not isinstance(content, dict):
        raise ValueError(f"found {_kind(content)}, expected a JSON object")
    _check_values(content)
    return content


def _each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in items:
        if key in content:
            raise ValueError(f"the key {key[:100]!r} is given twice")
        content[key] = value
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"found {text}, which is not JSON; expected a finite number")


def _check_values(content: Any) -> None:
    """Raise ValueError for a value that a spec never needs and that a later step may not survive; quotes nothing."""
    for number, (value, depth) in enumerate(_walk(content)):
        if depth > MAX_DEPTH:
            raise ValueError(f"nested too deeply; expected at most {MAX_DEPTH} levels")
        if number > MAX_BYTES:  # YAML can name one list any number of times
            raise ValueError(f"more than {MAX_BYTES} values; expected fewer")
        if isinstance(value, (str, list, dict)) and len(value) > MAX_LENGTH:
            raise ValueError(f"found {_kind(value)} of length {len(value)}; expected at most {MAX_LENGTH}")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("a text holds half a surrogate pair; expected Unicode")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("found a whole number beyond 64 bits; expected a smaller one")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("found a number beyond the range of a float; expected a finite number")


def _walk(content: Any) -> Iterator[tuple[Any, int]]:
    """Every value and key in `content`, with its depth; without recursion."""
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        yield value, depth
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
