"""The model registry: a version exists for us only when it is complete and its hashes are as registered.

In: a model folder written by `planner.decoding.package`. Out: a version of the registered model, read back and checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError
from planner.contracts.gate import SCORES, GateResult
from planner.decoding.files import MANIFEST, sha256_of_file, verify_package
from planner.promotion.registry import alias_version, check_not_found, unreachable

KEY_TAG = "planner.key"
HASH_TAG = "package_sha256"
KIND_TAG = "kind"
_SCORES_HEAD = "\n\n## Newest replay\n"


@dataclass(frozen=True)
class RegisteredVersion:
    """A complete version: `package_sha256` is the hash of the manifest of its files."""

    name: str
    version: str
    package_sha256: str
    tags: Mapping[str, str]
    run_id: str | None


def register_package(
    folder: Path, catalogue: Catalogue, *, model_name: str, key: str, tags: Mapping[str, object], description: str
) -> RegisteredVersion:
    """Log the folder to the active run and register it, or find the version that an earlier try registered.

    Args:
        folder: a model folder with its manifest.
        catalogue: of the model; the input example names dishes of it.
        model_name: the registered model.
        key: what makes the version the same one when asked twice (a POST whose answer was lost is retried).
        tags: tags of the version.
        description: the version's model card.
    Raises:
        ModelError: what was registered does not read back as it was written.
    """
    from planner.decoding.served import log_arguments  # loads torch, which only a new version needs

    found = find_by_key(model_name, key)
    if found is not None:
        return found
    client, sha256 = MlflowClient(), sha256_of_file(folder / MANIFEST)
    info = mlflow.pyfunc.log_model(name="model", **log_arguments(folder, catalogue))
    _ensure_model(client, model_name)
    all_tags = {**{k: str(v) for k, v in tags.items() if v is not None}, KEY_TAG: key, HASH_TAG: sha256}
    run = mlflow.active_run()
    created = client.create_model_version(
        model_name,
        source=info.model_uri,
        run_id=run.info.run_id if run else None,
        tags=all_tags,
        description=description,
        model_id=info.model_id,
        await_creation_for=60,
    )
    return read_back(model_name, created.version)


def show_scores(gate: GateResult, run_id: str) -> None:
    """Put the newest replay's verdict and scores behind the model card of the version, in place of those before.

    Raises:
        ModelError: there is no such version.
        TrackingError: the registry cannot be reached, or refuses.
    """
    card = get_version(gate.model_name, gate.model_version).description or ""
    lines = [
        f"Verdict: {gate.verdict} against version {gate.baseline_version}, {gate.num_rows} rows of the {gate.split} "
        f"split of planner/{gate.dataset_version}; report in run {run_id}.",
        "",
        "| score | candidate | baseline |",
        "|---|---|---|",
        *(f"| {n} | {gate.scores[n]:.4f} | {gate.baseline_scores[n]:.4f} |" for n in SCORES if n in gate.scores),
    ]
    text = "\n".join([card.partition(_SCORES_HEAD)[0].rstrip() + _SCORES_HEAD, *lines])
    try:
        MlflowClient().update_model_version(gate.model_name, gate.model_version, description=text)
    except MlflowException as error:
        raise unreachable(error) from error


def read_back(model_name: str, version: str) -> RegisteredVersion:
    """Check a version's files against its registered hash.

    Raises:
        ModelError: the version does not exist, is incomplete, or a file differs.
    """
    found = get_version(model_name, version)
    expected = found.tags.get(HASH_TAG)
    if expected is None:
        raise ModelError(
            f"{model_name} version {version} carries no tag {HASH_TAG}, so nobody can tell whether its files are what "
            "was registered. Train or register it again.",
            model_name=model_name,
            version=version,
        )
    verify_package(local_package(model_name, str(found.version)), manifest_sha256=expected)
    return _typed(found)


def local_package(model_name: str, version: str) -> Path:
    """The version's model folder on local disk (downloaded where the store is not local).

    Raises:
        ModelError: the version has no files, or no package of ours.
    """
    get_version(model_name, version)
    try:
        root = Path(mlflow.artifacts.download_artifacts(f"models:/{model_name}/{version}"))
    except (MlflowException, OSError) as error:
        raise ModelError(
            f"The files of {model_name} version {version} cannot be read: {' '.join(str(error).split())[:300]} "
            "Register it again.",
            model_name=model_name,
            version=version,
        ) from None
    for manifest in sorted(root.rglob("manifest.json")):
        if (manifest.parent / "planner.json").is_file():
            return manifest.parent
    raise ModelError(
        f"{model_name} version {version} is incomplete or no model of this project: it has no manifest.json beside a "
        "planner.json. Train or register it again.",
        model_name=model_name,
        version=version,
    )


def get_version(model_name: str, version: str) -> ModelVersion:
    """A version by number or alias.

    Raises:
        ModelError: there is none; names those that there are.
        TrackingError: the registry cannot be reached, or refuses.
    """
    client = MlflowClient()
    try:
        if str(version).isdigit():
            return client.get_model_version(model_name, str(version))
        return client.get_model_version_by_alias(model_name, str(version).removeprefix("@"))
    except MlflowException as error:
        check_not_found(error)
        known = ", ".join(str(v.version) for v in all_versions(model_name)) or "none"
        raise ModelError(
            f"There is no version {version!r} of the model {model_name!r}; there are: {known}. "
            "Pass model_version=<number>, or train one with `mlflow run . -e train`.",
            model_name=model_name,
            version=version,
        ) from None


def all_versions(model_name: str) -> list[ModelVersion]:
    """All versions of a model, newest first.

    Raises:
        TrackingError: the registry cannot be reached, or refuses.
    """
    quoted = model_name.replace("'", "")
    try:
        found = MlflowClient().search_model_versions(f"name = '{quoted}'")
    except MlflowException as error:
        raise unreachable(error) from error
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def newest_trained(model_name: str) -> ModelVersion:
    """Newest version that was trained, the built-in baseline left out.

    Raises:
        ModelError: nothing has been trained yet.
    """
    for version in all_versions(model_name):
        if version.tags.get(KIND_TAG) == "lora":
            return version
    raise ModelError(
        f"No trained version of {model_name!r} is registered. Run `mlflow run . -e train` first.", model_name=model_name
    )


def find_by_key(model_name: str, key: str) -> RegisteredVersion | None:
    """The complete version that was registered under this key, if any."""
    for version in all_versions(model_name):
        if version.tags.get(KEY_TAG) == key:
            try:
                return read_back(model_name, version.version)
            except ModelError:
                continue  # a half-uploaded version: left where it is, never used
    return None


def find_alias(model_name: str, alias: str) -> str | None:
    """Number of the version that carries the alias, or None.

    Raises:
        TrackingError: the registry cannot be reached, or refuses.
    """
    return alias_version(MlflowClient(), model_name, alias)


def _ensure_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name, description="Plans a household's week of meals under its constraints.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _typed(version: ModelVersion) -> RegisteredVersion:
    tags: dict[str, Any] = dict(version.tags)
    return RegisteredVersion(version.name, str(version.version), tags[HASH_TAG], tags, version.run_id)
