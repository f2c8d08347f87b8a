"""Folders of adapters, made once by stock PEFT."""

import pytest

import merge_ops
from tests.text.models import ATTENTION, KINDS, MLP, save_adapters


@pytest.fixture(scope="session", params=sorted(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def adapters(kind, tmp_path_factory):
    """Folders of the three adapters of a kind of model."""
    return save_adapters(kind, KINDS[kind][1], tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="session")
def llama_adapters(tmp_path_factory):
    """Folders of three adapters on every linear layer of the tiny Llama."""
    return save_adapters("llama", [[*ATTENTION, *MLP]] * 3, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def loras(adapters):
    return {name: merge_ops.load(path) for name, path in adapters.items()}
