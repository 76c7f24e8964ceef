"""The plateau spec: which base-LLM tensors are merged into which decoder layers, and how.

Parsing is strict: every problem of a spec and its overrides is reported in one `SpecError`. This module imports
pydantic and PyYAML only, so that a spec can be checked where torch is not installed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from plam_eval import hub
from plam_eval.arguments import read_whole_number, takes
from plam_eval.errors import ProblemsError, hint, quoted, system_error, validation_problems
from plam_eval.layer_sets import as_range, read_layers, read_range, tell_layers
from plam_eval.rule_parameters import split_parameters
from plam_eval.rules import RULES, SELF_SCALE, WEIGHTED_SUM, why_not, without_negative_zero
from plam_eval.weight_ramps import PAIR, RAMP, AnyWeights, Ramp, Record, Weights, as_weights
from plam_eval.yaml_reader import LARGEST_FILE, mapping_problems, parse_yaml, read_yaml

# Short module name -> suffix below a decoder layer. The order is the canonical one of `PlateauSpec.modules`.
MODULES: dict[str, str] = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
GROUPS: dict[str, tuple[str, ...]] = {
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qk": ("q_proj", "k_proj"),
    "vo": ("v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all": tuple(MODULES),
}

# Override key (one `key=value` of model_args) -> the field it sets.
_OVERRIDES = {
    "base": "base_model",
    "ancestor": "ancestor",
    "layers": "layer_range",
    "modules": "modules",
    "model_weight": "weights.model",
    "base_weight": "weights.base_model",
    "rule": "rule",
    "parameters": "parameters",
    "seed": "seed",
}
OVERRIDE_KEYS: tuple[str, ...] = tuple(_OVERRIDES)

# Used only when overrides alone make a spec: the modules and the weights of the authors' own Qwen3-VL runs.
_DEFAULTS = {"modules": GROUPS["qkvo"], "weights": {"model": 0.9, "base_model": 0.3}}
_MOST_WORDS = 50
LARGEST_SEED = 2**63 - 1


class SpecError(ProblemsError, ValueError):
    """A plateau spec that cannot be used."""


class PlateauSpec(Record):
    """One merge, fully described. Build it with `load_spec`, which words every problem for a reader.

    `layers` are decoder layers, counted from 0, in order. `layer_range` is their start and end, end exclusive; None
    where there is a gap between them. A spec is written with one of both. `modules` are keys of `MODULES`, in that
    order. `weights` are one pair, or a ramp from the first of the layers to the last; `weights_at` has those of a
    layer. `model`, `evidence` and `source` document the spec and change no weight.
    """

    model: str | None = None
    base_model: str = Field(min_length=1)
    layer_range: tuple[int, int] | None = None
    layers: tuple[int, ...] = Field(default=None, validate_default=True)
    modules: tuple[str, ...]
    weights: AnyWeights
    rule: str = WEIGHTED_SUM
    parameters: dict[str, float] = Field(default_factory=dict, validate_default=True)
    seed: int = 0
    ancestor: str | None = Field(default=None, validate_default=True)
    evidence: dict[str, Any] | None = None
    source: str | None = None

    @field_validator("model", "base_model", "rule", "ancestor", "source", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            raise ValueError(f'found {quoted(value)}, expected text; put it into quotes, as "{quoted(value)}"')
        return value

    @field_validator("model", "base_model", "ancestor")
    @classmethod
    def _revision(cls, value: str | None, info: ValidationInfo) -> str | None:
        rule = info.data.get("rule")
        if info.field_name == "ancestor" and not value and rule is not None and RULES[rule].needs_ancestor:
            raise ValueError(
                f"missing; {rule} needs the checkpoint that MLLM and base were both tuned from: a hub id or a folder"
            )
        if problem := hub.name_problem(value or ""):
            raise ValueError(problem)
        return value

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if not isinstance(value, (Mapping, Weights, Ramp)):
            raise ValueError(f"found {quoted(value)}, expected both by name: {{model: 0.9, base_model: 0.3}}")
        return value

    @field_validator("weights")
    @classmethod
    def _shortest(cls, value: Weights | Ramp) -> Weights | Ramp:
        return as_weights(value)

    @field_validator("layer_range", mode="before")
    @classmethod
    def _layer_range(cls, value: Any) -> tuple[int, int] | None:
        if value is None:
            return None
        return read_range(value)

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any, info: ValidationInfo) -> tuple[int, ...]:
        if "layer_range" not in info.data:  # which is wrong itself
            return ()
        ends = info.data["layer_range"]
        if value is not None and ends is not None:
            raise ValueError(f"found {quoted(value)} beside layer_range: {list(ends)}; expected one of them")
        if value is None and ends is None:
            raise ValueError("missing; expected layer_range: [start, end], or layers: [3, 9, 20]")
        return read_layers(value) if ends is None else tuple(range(*ends))

    @model_validator(mode="after")
    def _one_spelling(self) -> PlateauSpec:
        self.__dict__["layer_range"] = as_range(self.layers) if self.layers else self.layer_range
        return self

    @field_validator("modules", mode="before")
    @classmethod
    def _modules(cls, value: Any) -> tuple[str, ...]:
        words = [word.strip() for word in value.split("+")] if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not words or len(words) > _MOST_WORDS:
            raise ValueError(f"found {quoted(value)}, expected module names or a group ({', '.join(GROUPS)})")
        unknown = [w for w in words if not isinstance(w, str) or (w not in MODULES and w not in GROUPS)]
        if unknown:
            if any(isinstance(word, str) and "," in word for word in unknown):
                joined = "+".join(name.strip() for word in words for name in str(word).split(","))
                raise ValueError(
                    f"found {quoted(value)}, expected names joined by +: write {joined}, or a list in a file"
                )
            names = [*MODULES, *GROUPS]
            raise ValueError("; ".join(f"unknown module {quoted(word)}, {hint(word, names)}" for word in unknown))
        named = Counter(name for word in words for name in GROUPS.get(word, (word,)))
        if twice := sorted(name for name, count in named.items() if count > 1):
            raise ValueError(f"{', '.join(twice)} named more than once in {quoted(value)}")
        return tuple(name for name in MODULES if name in named)

    @field_validator("rule")
    @classmethod
    def _rule(cls, value: str, info: ValidationInfo) -> str:
        if value not in RULES:
            if reason := why_not(value):
                raise ValueError(f"{quoted(value)} is no rule here: {reason}")
            raise ValueError(f"unknown rule {quoted(value)}, {hint(value, RULES)}")
        # Weights and layers are missing here when they are wrong themselves.
        weights, layers, refused = info.data.get("weights"), info.data.get("layers") or (0,), RULES[value].refused
        for layer in layers:
            if weights and refused and (problem := refused(weights.at(layer, layers).coefficients)):
                raise ValueError(f"layer {layer}: {problem}" if isinstance(weights, Ramp) else problem)
        return value

    @field_validator("parameters", mode="before")
    @classmethod
    def _parameters(cls, value: Any, info: ValidationInfo) -> dict[str, float]:
        given = split_parameters(value)
        rule = info.data.get("rule")
        return {} if rule is None else RULES[rule].read_parameters(given)  # None where it is wrong itself

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, value: Any) -> int:
        return read_whole_number(value, LARGEST_SEED)

    @property
    def needs_ancestor(self) -> bool:
        """Whether the rule takes tensors of `ancestor`; a spec may name one for its controls alone."""
        return RULES[self.rule].needs_ancestor

    def check_layers(self, num_layers: int, model_name: str) -> None:
        """Refuse a range that reaches beyond the decoder of a model.

        Args:
            num_layers: decoder layers that it has.
            model_name: what it is called, for the message.

        Raises:
            SpecError: the range does not fit.
        """
        if self.layers[-1] >= num_layers:
            key, most = ("layer_range", "an end of at most") if self.layer_range else ("layers", "layers of at most")
            raise SpecError(
                f"{key}: {tell_layers(self.layers)} does not fit {model_name}, which has {num_layers} decoder layers "
                f"(0 to {num_layers - 1}); expected {most} {num_layers if self.layer_range else num_layers - 1}",
                origin="plateau spec",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, those left out of the spec left out here; `load_spec` reads it back to an equal spec."""
        content = self.model_dump(mode="json", exclude_none=True)
        left_out = {"layers"} if self.layer_range else {"layer_range"}
        left_out |= set() if self.parameters else {"parameters"}
        return {key: value for key, value in content.items() if key not in left_out}

    @property
    def is_plain(self) -> bool:
        """Whether the merge leaves every weight as it is."""
        return not self._changing()

    def digest(self) -> str:
        """SHA-256 (hex) of what changes weights: two specs with one digest merge to the same tensors.

        One merge under two names has one digest: `normalized` 0.9 + 0.3 is `weighted_sum` 0.75 + 0.25, without a share
        of the base it does not matter which is named, and layers that a ramp leaves as they are do not count.
        """
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def recipe(self, layer: int) -> str:
        """A digest of what the tensors of a layer depend on: those of two specs with one recipe are the same.

        Args:
            layer: one of `layers`.
        """
        return hashlib.sha256(json.dumps(self._content_of(self.weights_at(layer)), sort_keys=True).encode()).hexdigest()

    def weights_at(self, layer: int) -> Weights:
        """The weights that the tensors of a layer are merged with.

        Args:
            layer: one of `layers`.
        """
        return self.weights.at(layer, self.layers)

    def _content(self) -> dict[str, Any]:
        """Layers that stay as they are, at an end of a ramp, are none of those that are merged."""
        by_layer = self._changing() or self._by_layer()
        ends, contents = as_range(tuple(by_layer)), list(by_layer.values())
        return {
            "format": "plateau-spec/1",
            **({"layer_range": list(ends)} if ends else {"layers": list(by_layer)}),
            "modules": list(self.modules),
            **(contents[0] if all(content == contents[0] for content in contents) else {"by_layer": contents}),
        }

    def _changing(self) -> dict[int, dict[str, Any]]:
        """`_by_layer` without the layers that stay as they are."""
        by_layer = self._by_layer().items()
        return {layer: own for layer, own in by_layer if (own["rule"], own["weights"][0]) != (SELF_SCALE, 1)}

    def _by_layer(self) -> dict[int, dict[str, Any]]:
        if isinstance(self.weights, Weights):
            return dict.fromkeys(self.layers, self._content_of(self.weights))
        return {layer: self._content_of(self.weights_at(layer)) for layer in self.layers}

    def _content_of(self, pair: Weights) -> dict[str, Any]:
        """What changes the weights of a layer, but for layer and modules."""
        rule, weights, base = self.rule, without_negative_zero(pair.coefficients), self.base_model
        if leaves := RULES[rule].leaves:
            rule = leaves(self.parameters) or rule
        for _ in range(3):  # of one rule, which may be that of another
            if equal_to := RULES[rule].equal_to:
                rule, weights = equal_to(weights)
        if weights == (1, 0) and RULES[rule].unit_is_plain:  # no change, whatever makes it
            rule = SELF_SCALE
        if rule == SELF_SCALE:  # which takes nothing of the base
            base = ""
        names = sorted(parameter.name for parameter in RULES[rule].parameters)
        return {
            "base_model": base,
            "weights": list(weights),
            "rule": rule,
            "seed": self.seed if RULES[rule].draws else None,
            **({"ancestor": self.ancestor} if RULES[rule].needs_ancestor else {}),
            **({"parameters": {name: self.parameters[name] for name in names}} if names else {}),
        }


def packaged_specs() -> list[str]:
    """Names of the specs that come with the package."""
    files = resources.files("plam_eval.configs").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def digest_of(spec: PlateauSpec | None) -> str:
    """What names weights where answers are kept: the digest of the spec that they are merged by, or "plain".

    Args:
        spec: the spec; None for the plain model.
    """
    return spec.digest() if spec is not None else "plain"


@takes()
def load_spec(
    plateau: str | Path | Mapping[str, Any] | PlateauSpec | None, overrides: Mapping[str, Any] | None = None
) -> PlateauSpec | None:
    """The spec that `plateau` names, with single fields replaced.

    Args:
        plateau: name of a packaged spec; path of a YAML file; else a spec on the hub (`hub.HubSpec`);
            a mapping, a spec; None or "none" is the plain model. A `Path` is only ever looked for as a file.
        overrides: keys of `OVERRIDE_KEYS`, values as in model_args (`layers="24:36"`, `modules="q_proj+k_proj"`) or as
            in YAML; None values count as not given. Without a plateau, `base` and `layers` together make a spec: q, k,
            v, o, 0.9 + 0.3 unless overridden.

    Returns:
        The spec, or None for the plain model.

    Raises:
        SpecError: listing every problem of the spec and the overrides.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise SpecError(
            f"found {quoted(overrides)}, expected a mapping, such as {{'layers': '24:36'}}", origin="overrides"
        )
    overrides = {key: value for key, value in (overrides or {}).items() if value is not None}
    plain = plateau is None or (isinstance(plateau, str) and plateau.strip().lower() == "none")
    if plain and not overrides:
        return None
    if plain:
        origin, data = "overrides without a plateau", dict(_DEFAULTS)
    else:
        origin, data = _read(plateau)

    problems = [f"{key}: unknown override, {hint(key, OVERRIDE_KEYS)}" for key in overrides if key not in _OVERRIDES]
    if plain and not {"base", "layers"} <= set(overrides):
        problems.append(
            f"found {', '.join(f'{k}={v}' for k, v in overrides.items())} with plateau=none; expected a plateau to "
            "override, or both base= and layers= to make one"
        )
        raise SpecError(*problems, origin=origin)
    for key, value in sorted(overrides.items(), key=lambda item: item[0] != "rule"):
        if key in ("base", "ancestor") and isinstance(value, (int, float)):  # lmms-eval reads digits as a number
            problems.append(
                f"{key}: found {quoted(value)}, a number; write {key}=./{quoted(value)} for a folder of that name"
            )
            continue
        _override(data, key, value)
    if overrides:  # the source's claim is about the spec as published, so a changed one must say what was changed
        changed = "overridden: " + ", ".join(f"{key}={value}" for key, value in overrides.items())
        data["source"] = f"{data['source']} ({changed})" if data.get("source") else changed

    try:
        spec = PlateauSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(*problems, *_problems(error, overrides), origin=origin) from None
    if problems:
        raise SpecError(*problems, origin=origin)
    return spec


def _override(data: dict[str, Any], key: str, value: Any) -> None:
    """Put the value of an override into unchecked content; one of an unknown key nowhere."""
    field, _, weight = _OVERRIDES.get(key, "").partition(".")
    if weight:
        weights = data.get(field)
        data[field] = {**(weights if isinstance(weights, Mapping) else {}), weight: value}
    elif key == "layers":
        data.pop("layer_range", None)
        data.pop("layers", None)
        data[_field_of_layers(value)] = value
    elif field:
        if key == "rule" and value != data.get("rule"):
            data.pop("parameters", None)  # of the other rule
        data[field] = value


def _field_of_layers(value: Any) -> str:
    """The field that a value of the override `layers` is of: two numbers in a list are a range, as in a file."""
    several = "+" in value if isinstance(value, str) else isinstance(value, (list, tuple)) and len(value) != 2
    return "layers" if several else "layer_range"


def _problems(error: ValidationError, overrides: Mapping[str, Any]) -> list[str]:
    """pydantic's findings in our words: field, what was found, what was expected, the nearest known key."""
    keys = {"": PlateauSpec.model_fields, "weights": Weights.model_fields}
    problems = []
    for field, text in validation_problems(error, keys, meant=_OVERRIDES, tags=(PAIR, RAMP)):
        named = "layer_range" if field == "layers" else field
        override = next((key for key, target in _OVERRIDES.items() if target == named and key in overrides), None)
        problems.append(f"{field}{f' (override {override}=)' if override else ''}: {text}")
    return problems


def _read(plateau: Any) -> tuple[str, dict[str, Any]]:
    """Where a spec comes from, in words, and its unchecked content."""
    if isinstance(plateau, PlateauSpec):
        return "plateau spec", plateau.to_dict()
    if isinstance(plateau, Mapping):
        return "plateau spec", dict(plateau)
    if not isinstance(plateau, (str, Path)):
        raise SpecError(f"found {plateau!r}, expected a name, a path, a mapping or a PlateauSpec", origin="plateau")
    origin, names = f"plateau spec {str(plateau)!r}", packaged_specs()
    if not str(plateau).strip():
        raise SpecError(
            f"found no name, expected a packaged spec, a YAML file or none; {hint('', names)}", origin=origin
        )
    try:
        if str(plateau).startswith("~"):
            plateau = Path(plateau).expanduser()  # in model_args no shell does it
        if isinstance(plateau, str) and (named := hub.HubSpec.read(plateau)) and not Path(plateau).exists():
            return origin, _on_the_hub(origin, named, names)
        if isinstance(plateau, str) and plateau in names:
            data = parse_yaml((resources.files("plam_eval.configs") / f"{plateau}.yaml").read_text(encoding="utf-8"))
        elif Path(plateau).is_dir():
            within = [file.name for file in sorted(Path(plateau).glob("*.yaml"))[:5]]
            write = f"; write plateau={Path(plateau) / within[0]}" if len(within) == 1 else ""
            raise SpecError(f"it is a folder, expected a YAML file{write}", origin=origin)
        elif Path(plateau).is_file():
            data = read_yaml(plateau)
        else:
            raise SpecError(_nowhere(str(plateau), names), origin=origin)
    except (OSError, ValueError, RuntimeError) as error:  # YamlError; an unknown user; a path that no system has
        if isinstance(error, SpecError):
            raise
        why = system_error(error) if isinstance(error, OSError) else str(error)
        raise SpecError(f"cannot be read: {why}", origin=origin) from error
    return origin, _fields(origin, data)


def _on_the_hub(origin: str, named: hub.HubSpec, names: list[str]) -> dict[str, Any]:
    """Unchecked content of a spec file on the hub; its source says which file of which commit it was."""
    if problem := named.problem():
        raise SpecError(problem, origin=origin)
    try:
        path, commit = hub.small_file(named.repository, named.file, named.revision, LARGEST_FILE)
    except hub.HubError as error:
        here = _nowhere(named.written, names)
        raise SpecError(here, f"on the hub: {named.repository}: {error}", origin=origin) from error
    try:
        data = _fields(origin, read_yaml(path))
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{named.file} in {named.repository} cannot be read: {error}", origin=origin) from error
    origin_file = f"from {named.repository}@{commit or named.revision}:{named.file}"
    source = data.get("source")
    if source is None or isinstance(source, str):
        data["source"] = f"{source} ({origin_file})" if source else origin_file
    return data


def _nowhere(written: str, names: list[str]) -> str:
    path = Path(written)
    return (
        f"no packaged spec of that name, and no file {path.name} in {path.absolute().parent}; "
        f"{hint(written, [*names, 'none'])}"
    )


def _fields(origin: str, data: Any) -> dict[str, Any]:
    if problems := mapping_problems(data, "fields, one a line, as `base_model: org/name`"):
        raise SpecError(*problems, origin=origin)
    return dict(data)
