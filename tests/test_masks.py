"""Which entries survive: random masks from a counter, and thresholds by selection."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_ops.methods.masks import MaskGenerator, _below, hash_words, mask_key
from merge_ops.methods.sparsify import keep_largest
from merge_ops.methods.thresholds import magnitude_thresholds
from tests.launches import Launches

_64 = (1 << 64) - 1


def splitmix64(seed, count):
    """Steele, Lea and Flood (OOPSLA 2014) in Python's own integers."""
    words = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & _64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64
        words.append(z ^ (z >> 31))
    return words


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def kept(generator, like, density):
    """All masks of a generator, ``(n, rows, columns)`` of bool."""
    return generator.masks(like, density).bool()


def test_the_published_vectors_of_splitmix64():
    published = [
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]),
    ]
    for seed, words in published:
        assert splitmix64(seed, 4) == words
        assert [w & _64 for w in hash_words(seed, 4).tolist()] == words


@settings(deadline=None, max_examples=50)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_words_are_those_of_splitmix64_for_every_key(key):
    assert hash_words(key, 9).tolist() == [signed(w) for w in splitmix64(key & _64, 9)]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 1000), st.integers(1, 40), st.floats(0.001, 0.999)
)
def test_a_mask_is_the_bits_of_the_words(key, first, size, density):
    """Entry ``i`` has a 16-bit number: bit ``i % 64`` of 16 words of group ``i // 64``, the highest first."""
    words = splitmix64(key & _64, 16 * ((first + size) // 64 + 1))
    wanted = []
    for i in range(first, first + size):
        group = words[16 * (i // 64) : 16 * (i // 64) + 16]
        number = int("".join(str(word >> (i % 64) & 1) for word in group), 2)
        wanted.append(number < round(density * 65536))
    assert kept(MaskGenerator([key], first), torch.empty(1, size), density)[0].tolist() == wanted


@pytest.mark.parametrize("density", [0.5, 0.25, 0.3, 1 / 65536, 1e-9, 1 - 1e-9])
def test_other_devices_draw_the_same_bits(density):
    """What runs where there is no numpy, against what the CPU does, from any entry on."""
    for first, size in ((0, 64), (37, 200), (6400, 1)):
        mask = kept(MaskGenerator([-5, 2**62], first), torch.empty(2, size), density)
        share = round(density * 65536)
        for key, row in zip((-5, 2**62), mask, strict=True):
            if 0 < share < 65536:
                words = -(-(first % 64 + size) // 64)
                (bits,) = _below([key], share, first // 64, words, torch.device("cpu"))
                assert torch.equal(bits[first % 64 : first % 64 + size].bool(), row)
            else:
                assert bool(row.all()) == (share > 0) and bool(row.any()) == (share > 0)


def test_other_devices_need_few_launches_for_all_masks_of_a_tile():
    """Their number depends neither on the density, but for one a bit, nor on the number of LoRAs."""
    for density, most in ((0.5, 21), (0.7, 36)):
        for keys in ([1], [1, -2, 3, 4]):
            share = round(density * 65536)
            with Launches() as seen:
                _below(keys, share, 5, 100, torch.device("cpu"))
            assert not seen.waits and len(seen.launches) <= most, seen.launches


@pytest.mark.parametrize("height", [1, 3, 7, 64])
@pytest.mark.parametrize("columns", [1, 13, 50])
def test_tiles_are_cut_from_the_whole(height, columns):
    keys = [mask_key(0, "layer", who) for who in "abc"]
    whole = kept(MaskGenerator(keys), torch.empty(3, 64, columns), 0.4)
    for start in range(0, 64, height):
        tile = torch.empty(3, min(height, 64 - start), columns)
        assert torch.equal(
            kept(MaskGenerator(keys, start * columns), tile, 0.4), whole[:, start : start + height]
        )


def test_one_generator_can_be_asked_twice():
    generator = MaskGenerator([5], first=2)
    like = torch.empty(1, 30)
    assert torch.equal(kept(generator, like, 0.5), kept(generator, like, 0.5))


@pytest.mark.parametrize("density", [0.001, 0.01, 0.3, 0.5, 0.99])
def test_density_is_met_within_3_sigma(density):
    mask = kept(MaskGenerator([mask_key(1, "layer", "who")]), torch.empty(1, 1000, 1000), density)
    sigma = math.sqrt(density * (1 - density) / 1e6)
    assert abs(float(mask.double().mean()) - density) < 3 * sigma


def test_a_higher_density_keeps_what_a_lower_one_keeps():
    generator = MaskGenerator([3])
    like = torch.empty(1, 10000)
    low, high = kept(generator, like, 0.2), kept(generator, like, 0.6)
    assert bool((high | ~low).all())


def test_neither_rows_nor_columns_are_favoured():
    mask = kept(MaskGenerator([mask_key(2, "layer", "who")]), torch.empty(1, 600, 800), 0.5)[0].double()
    for dim, size in ((0, 600), (1, 800)):
        z = (mask.mean(dim=dim) - 0.5) / math.sqrt(0.25 / size)
        assert abs(float(z.std()) - 1) < 0.1 and float(z.abs().max()) < 5
    neighbours = (mask[:, 1:] == mask[:, :-1]).double().mean()
    assert abs(float(neighbours) - 0.5) < 3 * math.sqrt(0.25 / (600 * 799))


@pytest.mark.parametrize(
    "other",
    [
        (1, "layer", "who", "delta"),
        (0, "layers", "who", "delta"),
        (0, "layer", "what", "delta"),
        (0, "layer", "who", "up"),
    ],
    ids=["seed", "layer", "lora", "part"],
)
def test_masks_are_independent(other):
    """Another seed, layer, LoRA or part: agreement of two fair masks is a fair coin."""
    keys = [mask_key(0, "layer", "who", "delta"), mask_key(*other)]
    one, two = kept(MaskGenerator(keys), torch.empty(2, 400_000), 0.5)
    assert abs(float((one == two).double().mean()) - 0.5) < 3 * math.sqrt(0.25 / 400_000)


def test_keys_do_not_run_together():
    assert mask_key(1, "1", "a") != mask_key(11, "", "a")
    assert mask_key(0, "ab", "c") != mask_key(0, "a", "bc")
    assert -(1 << 63) <= mask_key(0, "layer", "who") < 1 << 63


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_threshold_keeps_the_largest_exactly_as_sorting_does(data):
    """``int(density * numel)`` entries, more only where magnitudes at the cut are equal."""
    values = data.draw(
        st.lists(
            st.floats(-9, 9, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40]),
            min_size=1,
            max_size=60,
        )
    )
    density = data.draw(st.floats(0, 1) | st.sampled_from([0.25, 0.5, 0.75]))
    found = torch.tensor(values, dtype=torch.float32)
    before = found.clone()
    threshold = magnitude_thresholds([found], density)[0]
    assert torch.equal(found, before)
    kept = int(density * len(values))
    ordered = found.abs().sort(descending=True).values
    wanted = found.abs() >= ordered[kept - 1] if kept else torch.zeros(len(values), dtype=torch.bool)
    assert torch.equal(found.abs() >= torch.tensor(threshold), wanted)


def test_threshold_at_both_ends():
    values = torch.randn(7, 5)
    assert magnitude_thresholds([values], 0.0)[0] == math.inf
    assert magnitude_thresholds([values], 0.02)[0] == math.inf, "int(0.02 * 35) is 0"
    assert magnitude_thresholds([values], 1.0)[0] == 0.0
    assert magnitude_thresholds([torch.zeros(4, 4)], 0.5)[0] == 0.0


def test_threshold_stands_clear_of_the_entries_it_parts():
    """A delta made again in other tiles differs in its last bits; the cut must not depend on them."""
    values = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    threshold = magnitude_thresholds([values], 0.3)[0]
    shaken = values * (1 + 1e-7 * torch.randn(values.shape, generator=torch.Generator().manual_seed(1)))
    assert int((values.abs() >= threshold).sum()) == 18000
    assert torch.equal(values.abs() >= threshold, shaken.abs() >= threshold)


def test_keep_largest_finds_one_threshold_a_matrix():
    values = torch.randn(2, 3, 10, 20) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    assert (keep_largest(values, 0.35).count_nonzero(dim=(-2, -1)) == 70).all()
