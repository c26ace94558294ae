"""The tiny base model and catalogue that the decoding tests share, built once a session."""

from __future__ import annotations

import pytest
import torch

from planner.decoding.base import load_base, resolve_base
from tests.tiny import tiny_base_folder, tiny_catalogue


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_base_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base_files(base_folder):
    return resolve_base(str(base_folder))


@pytest.fixture(scope="session")
def base(base_files):
    return load_base(base_files, device="cpu")


@pytest.fixture(scope="session")
def catalogue():
    return tiny_catalogue(60)
