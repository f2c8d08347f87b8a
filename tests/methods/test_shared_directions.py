"""TSV, NP-LoRA and KnOTS-TIES against the decompositions of their papers, on dense matrices."""

import pytest
import torch

from merge_ops import Lora
from merge_ops.merging import merge
from merge_ops.methods.ties import ties
from tests.methods.dense import DOUBLE, assert_near, matrices, random_loras, thin_svd

WEIGHTS = [0.7, -0.4, 1.3, 0.2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tsv_uses_the_nearest_orthogonal_vectors(count):
    """The polar factor ``P Q.T`` of an SVD ``P s Q.T``, for all vectors side by side."""
    loras = random_loras(count, shape=(9, 8))
    svds = [thin_svd(matrix) for matrix in matrices(loras)]

    def polar(vectors):
        p, _, q = torch.linalg.svd(vectors, full_matrices=False)
        return p @ q

    u = polar(torch.cat([each[0] for each in svds], dim=1))
    v = polar(torch.cat([each[2] for each in svds]).T).T
    s = torch.cat([w * each[1] for each, w in zip(svds, WEIGHTS, strict=False)])
    assert_near(merge(loras, WEIGHTS[:count], "tsv").delta("layer"), (u * s) @ v)


def test_tsv_counts_one_lora_twice_as_one_of_the_summed_weights():
    """Both have the same vectors: half of each, ``2^-1/2`` per side, for each of the two."""
    (lora,) = random_loras(1)
    assert_near(merge([lora, lora], None, "tsv").delta("layer"), matrices([lora])[0])


@pytest.mark.parametrize("mu", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("style", ["last", "first"])
def test_np_projects_the_subjects(style, mu):
    loras = random_loras(3)
    terms = matrices(loras, WEIGHTS[:3])
    at = 2 if style == "last" else 0
    _, _, v = thin_svd(terms[at])
    subjects = terms.sum(0) - terms[at]
    wanted = terms[at] + subjects @ (torch.eye(7, dtype=DOUBLE) - mu / (1 + mu) * v.T @ v)
    assert_near(merge(loras, WEIGHTS[:3], "np", style=style, mu=mu).delta("layer"), wanted)


def test_np_adds_the_subjects_where_the_style_has_no_layer():
    """The last LoRA that has the layer is not the style."""
    loras = random_loras(2)
    style = Lora("style", {"other": loras[0].layers["layer"]})
    merged = merge([*loras, style], WEIGHTS[:3], "np")
    assert_near(merged.delta("layer"), matrices(loras, WEIGHTS[:2]).sum(0))
    assert_near(merged.delta("other"), 1.3 * matrices(loras[:1])[0])


def test_np_with_a_style_of_weight_zero_is_the_sum_of_the_subjects():
    loras = random_loras(3)
    found = merge(loras, [0.7, -0.4, 0.0], "np").delta("layer")
    assert_near(found, matrices(loras[:2], [0.7, -0.4]).sum(0))


@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_knots_is_ties_on_the_rows_of_one_svd(density, vote):
    loras, weights = random_loras(3, shape=(9, 40)), WEIGHTS[:3]
    deltas = matrices(loras)
    u, s, vh = thin_svd(torch.cat(list(deltas), dim=1))
    rows = (s[:, None] * vh).view(len(s), 3, 40).transpose(0, 1)
    rows = rows * rows.sum((0, 2)).sign()[:, None]  # a singular vector has no sign of its own
    u = u * (u.T @ deltas.sum((0, 2))).sign()
    merged = ties(rows.float(), torch.tensor(weights), density=density, majority_sign_method=vote)
    wanted = u @ merged.double()
    found = merge(loras, weights, "knots_ties", density=density, majority_sign_method=vote)
    assert_near(found.delta("layer"), wanted)
    assert found.factors("layer")[0].shape == (9, 6)
