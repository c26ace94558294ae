"""The whole recipe as one frozen value, and where each of its values came from.

In: `recipe.yaml`, `profiles/<name>.yaml` (differences only) and the parameters of the command line.
Out: a `ResolvedConfig`. Nothing else is read and no work is done before every value has its right type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from planner.contracts.errors import ConfigError
from planner.dataset.config import DatasetConfig
from planner.evaluation.config import EvaluateConfig
from planner.promotion.config import PromoteConfig
from planner.training.config import TrainConfig

PROJECT = Path(__file__).resolve().parents[2]
STEPS = ("build_dataset", "train", "evaluate", "promote")


class RecipeConfig(BaseModel):
    """Every value of a run, step by step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedded: bool
    """Start an own PostgreSQL and use the local MLflow store where the environment names none (local and ci only)."""
    folder: str
    """Working folder for everything that is not a result: the embedded server, checkpoints, half-done replays."""
    build_dataset: DatasetConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    promote: PromoteConfig


@dataclass(frozen=True)
class ResolvedConfig:
    """The checked recipe of one profile; `sources` names the file or parameter of each dotted key."""

    profile: str
    recipe: RecipeConfig
    sources: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The working folder, absolute."""
        return PROJECT / self.recipe.folder

    def step(self, name: str) -> BaseModel:
        """The config of one step."""
        section = getattr(self.recipe, name)
        assert isinstance(section, BaseModel)
        return section

    def values(self) -> dict[str, Any]:
        """Every dotted key with its plain value, in the order of `recipe.yaml`."""
        return flatten(self.recipe.model_dump(mode="json"))


def load_config(
    profile: str = "local", overrides: Mapping[str, Any] | None = None, *, project: Path = PROJECT
) -> ResolvedConfig:
    """Read, overlay and check the recipe.

    Args:
        profile: a file name in `profiles/` without its ending.
        overrides: dotted keys (`train.epochs`) with values from the command line; empty texts and None are left out.
        project: the folder that holds `recipe.yaml`.
    Raises:
        ConfigError: an unknown profile or key, or a value of the wrong type; names the key and its file.
    """
    values = flatten(_read_yaml(project / "recipe.yaml"))
    sources = dict.fromkeys(values, "recipe.yaml")
    for key, value in flatten(_read_profile(project, profile)).items():
        if key in STEPS and (value is None or value == {}):
            continue  # a section without a difference, its lines commented out perhaps
        values[key], sources[key] = value, f"profiles/{profile}.yaml"
    for key, value in (overrides or {}).items():
        if value is not None and value != "":
            values[key], sources[key] = value, f"parameter {key.rpartition('.')[2]}"
    recipe = _validated(values, sources)
    for key in flatten(recipe.model_dump(mode="json")):
        sources.setdefault(key, "default")
    return ResolvedConfig(profile, recipe, sources)


def available_profiles(project: Path = PROJECT) -> list[str]:
    """Names of the profiles that the project has."""
    return sorted(path.stem for path in (project / "profiles").glob("*.yaml"))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings; lists and empty mappings are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _validated(values: dict[str, Any], sources: Mapping[str, str]) -> RecipeConfig:
    try:
        return RecipeConfig.model_validate(_nested(values))
    except ValidationError as error:
        # A parameter always arrives as text: where the field wants a number, it is read as one, and only there.
        wrong = {".".join(str(part) for part in item["loc"]) for item in error.errors()}
        typed = {k: _number(v) for k, v in values.items() if k in wrong and sources[k].startswith("parameter ")}
    try:
        return RecipeConfig.model_validate(_nested({**values, **typed}))
    except ValidationError as error:
        raise _config_error(error, sources) from None


def _number(value: object) -> object:
    for kind in (int, float):
        try:
            return kind(str(value))
        except ValueError:
            continue
    return value


class _Loader(yaml.SafeLoader):
    """Leaves dates as text: the config's own check of a day names the key and the file."""


_LOADER_WITHOUT_DATES = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_implicit_resolvers = _LOADER_WITHOUT_DATES


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, last = dotted.split(".")
        node = root
        for parent in parents:
            if not isinstance(node.setdefault(parent, {}), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = value
    return root


def _read_profile(project: Path, profile: str) -> Mapping[str, Any]:
    known = available_profiles(project)
    if profile not in known:
        raise ConfigError(
            f"There is no profile {profile!r}. Use one of {', '.join(known)}, or add profiles/<name>.yaml.",
            profile=profile,
        )
    return _read_yaml(project / "profiles" / f"{profile}.yaml")


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path.name} cannot be read: {' '.join(str(error).split())}.", path=path) from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path.name} holds no keys; it must be a mapping such as recipe.yaml.", path=path)
    return values


def _config_error(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        source = sources.get(key) or next((s for k, s in sources.items() if k.startswith(f"{key}.")), "recipe.yaml")
        if item["type"] == "extra_forbidden":
            problems.append(f"{key} is no key of the recipe ({source}); `python -m planner show-config` lists them")
        elif item["type"] == "missing":
            problems.append(f"{key} is missing; set it in recipe.yaml")
        else:
            shown = repr(item["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            problems.append(f"{key} is {shown} ({source}): {item['msg'][:1].lower()}{item['msg'][1:]}")
    return ConfigError("Wrong configuration: " + "; ".join(problems) + ".", problems=tuple(problems))
