"""Folders of adapters, made once by stock PEFT."""

import pytest
import torch

import merge_ops
from merge_ops.models.transformers import AdapterPool
from tests.text.folders import MODELS, peft
from tests.text.models import ATTENTION, KINDS, MLP, make_model, save_adapters


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


@pytest.fixture
def model():
    return make_model("llama")


@pytest.fixture
def pool(model, llama_adapters):
    made = AdapterPool(model)
    for name, path in llama_adapters.items():
        made.add(name, path)
    return made


@pytest.fixture
def made(tmp_path):
    """``(folder, model with the adapter)``, the adapter's weights random."""

    def make(model, config, name="adapter", seed=0, vocabulary=None):
        base = MODELS[model]()
        if vocabulary:
            base.resize_token_embeddings(vocabulary, mean_resizing=False)
        own = peft.get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in own.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        folder = tmp_path / name
        own.save_pretrained(folder, save_embedding_layers=True if vocabulary else "auto")
        return folder, own.eval()

    return make
