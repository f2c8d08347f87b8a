"""Patterns of PEFT's configurations mean what they mean in PEFT."""

import random
import re
import warnings

import torch
from peft import IA3Config, LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

import merge_ops
from merge_ops import LoraFormatError
from merge_ops.patterns import ByPattern, Patterns, WholePattern
from merge_ops.saving.metadata import _rank_config as rank_config

PIECES = [
    "a", "b", ".", "q", "0", "1", "_", "-", r"\.", r"\d", r"\w", r"\W", r"\D", r"\s", r"\-", r"\x61",
    "[ab]", "[^a]", "[a-q.]", r"[^\d]", "[]a]", "[a-]", "^", "$", r"\b", r"\B", r"\A", r"\Z", "{", "{}",
    "a{,",
]  # fmt: skip
REPEATS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,1}", "{0}", "{1,}", "{,}"]
GROUPS = ["(", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?P<n>"]


def pattern_of(rng, depth=2):
    """A random pattern: about one in ten is not one to ``re`` either."""
    branches = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text = ""
        for _ in range(rng.randrange(4)):
            nested = depth and rng.random() < 0.3
            text += f"{rng.choice(GROUPS)}{pattern_of(rng, depth - 1)})" if nested else rng.choice(PIECES)
            text += rng.choice(REPEATS) if rng.random() < 0.3 else ""
        branches.append(text)
    return "|".join(branches)


def name_of(rng):
    return "".join(rng.choice("aabbq.0_-" if rng.random() > 0.03 else "\n") for _ in range(rng.randrange(9)))


def accepted(patterns, keys=True):
    try:
        return Patterns(patterns, keys)
    except LoraFormatError as error:
        assert repr(patterns[0])[:70] in str(error)
        return None


def test_random_patterns_match_what_re_matches():
    """The same names as ``re``, for keys and for whole names, and no pattern that ``re`` refuses."""
    rng, matched, compared = random.Random(0), 0, 0
    for _ in range(4000):
        pattern = pattern_of(rng)
        keys, whole = accepted([pattern]), accepted([pattern], keys=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            try:
                of_keys, of_whole = re.compile(rf"(.*\.)?({pattern})$"), re.compile(pattern)
            except re.error:
                assert keys is None, pattern
                continue
        assert keys is not None, pattern
        for name in {name_of(rng) for _ in range(6)}:
            by_re = bool(of_keys.match(name)), bool(of_whole.fullmatch(name))
            assert (keys.first(name) == 0, whole.first(name) == 0) == by_re, (pattern, name)
            matched, compared = matched + sum(by_re), compared + 2
    assert matched > 2000
    assert compared - matched > 2000


NAMES = [
    f"model.layers.{i}.{part}" for i in (0, 1, 11) for part in ("self_attn.q_proj", "mlp.gate", "mlpXgate")
]
NAMES += [
    "q_proj",
    "model.q_proj",
    "xq_proj",
    "model.layers.1",
    "visual.blocks.3.attn.qkv",
    "layers.0.mlp.gate",
]
WRITTEN = [
    "q_proj", "layers.1.mlp.gate", r"layers\.1\.mlp\.gate", "^model.layers.1.mlp.gate$", "^q_proj",
    "mlp.gate", r".*\.q_proj", ".*q_proj", "^.*gate", ".*(self_attn|mlp).*(gate|q_proj)",
    r"model.layers.\d+.mlp.*", "", "^(?!.*visual).*(q_proj|gate)$", r"^model(?=\.).*\.(q_proj|gate)$",
    "q_proj|gate", "(?:q|k)_proj", "layers",
    r"(?:.*?(?:visual|image).*?(?:attn).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:q_proj|gate))",
    r"model\.layers\.(?:[0-9]|1[01])\..*", r"(.*)\.gate", "q_proj$|^gate",
    re.escape("visual.blocks.3.attn.qkv"),
]  # fmt: skip


def test_peft_matches_the_same_keys():
    """The first pattern in the order of the file, over one, two and all patterns of a table."""
    rng = random.Random(1)
    tables = [[pattern] for pattern in WRITTEN] + [rng.sample(WRITTEN, 2) for _ in range(60)]
    tables += [rng.sample(WRITTEN, len(WRITTEN)) for _ in range(10)]
    for table in tables:
        ours = ByPattern({pattern: pattern for pattern in table})
        for name in NAMES:
            assert ours.of(name, name) == get_pattern_key(table, name), (table, name)


def test_peft_matches_the_same_whole_names():
    """Strings in ``target_modules``, and in ``feedforward_modules`` of (IA)3."""
    for pattern in filter(None, WRITTEN):
        config = LoraConfig(target_modules=pattern)
        for name in NAMES:
            assert WholePattern(pattern).fits(name) == bool(check_target_module_exists(config, name))
            assert WholePattern(pattern).fits(name) == bool(re.fullmatch(pattern, name))
    assert IA3Config(target_modules="q", feedforward_modules="q").feedforward_modules == "q"


def test_patterns_that_are_written_mean_their_own_module():
    """A dot is any letter in a pattern, and a name may hold signs that mean something there."""
    names = ["a.to_q", "a_to_q", "b.a.to_q", "b.a_to_q", "b_a.to_q", "to_q", "c.[x]", "c.(y", "c.z+", "c.zz"]
    layers = {n: merge_ops.LowRank(torch.ones(16, i + 1), torch.ones(i + 1, 4)) for i, n in enumerate(names)}
    config = rank_config(layers)
    for name, layer in layers.items():
        key = get_pattern_key(list(config["rank_pattern"]), name)
        assert config["rank_pattern"].get(key, config["r"]) == layer.rank, name
        assert ByPattern(config["alpha_pattern"]).of(name, config["r"]) == layer.rank
