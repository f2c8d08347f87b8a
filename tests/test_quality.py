"""``benchmarks/quality``: assets, sets, scores and statistics are what the page about quality says."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pathspec
import pytest
import torch

pytest.importorskip("diffusers", reason="the benchmark needs diffusers")

from benchmarks.quality.choose import choose
from benchmarks.quality.collect import Plan, Scores
from benchmarks.quality.docs import FIGURES, PAGE, PICTURE, with_figures
from benchmarks.quality.goals import GOALS, verdicts
from benchmarks.quality.perform import perform, studio
from benchmarks.quality.plan import ASSETS, KEPT, OWN, QUICK_SETS, SETS, TRAININGS, LoraSet, file_of, sources
from benchmarks.quality.rows import BASELINE, Row, rows_of
from benchmarks.quality.score import Amount, score
from benchmarks.quality.statistics import standard_error, summarize
from benchmarks.quality.table import markdown, text
from benchmarks.quality.text.tasks import LORAS as TEXT_LORAS
from benchmarks.quality.text.tasks import MORE, TASKS
from benchmarks.quality.work import Store, alone_units, work_through
from merge_ops import METHODS, ParameterError, load, merge
from merge_ops.demo.judge import judged
from merge_ops.demo.model import STYLES, sample
from merge_ops.models.diffusers import patched

ROOT = Path(__file__).parents[1]
FEW = Amount(own=8, others=1, pairs=4, kept=2)
PAIR = LoraSet(("six", "neon"))


def test_the_assets_are_complete_and_small():
    """Eight LoRAs, three times each, that differ; two text tasks; under 6 MB together."""
    files = [file_of(training, name) for training in TRAININGS for name in OWN]
    assert len({file.read_bytes() for file in files}) == 24
    assert all(load(file).rank in (3, 4, 8) for file in files)
    assert all(len(load(TEXT_LORAS[name]).layers) == 24 for name in MORE)
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 6_000_000


def test_the_assets_stay_out_of_the_archive_and_the_wheel():
    """They are tracked, and the registry's archive leaves them out; the wheel holds ``merge_ops`` alone."""
    command = ["git", "ls-files", "benchmarks/quality/assets"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) >= 30
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text().splitlines())
    assert all(ignored.match_file(name) for name in listed)
    assert 'packages = ["merge_ops"]' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("task", MORE)
def test_splits_of_the_text_tasks_share_no_family_of_words(task):
    parts = [TASKS[task].texts(split) for split in ("train", "dev", "test")]
    families = [{word[:5] for word in words} for words, _ in parts]
    assert sum(map(len, families)) == len(set().union(*families))
    for _, labels in parts:
        assert len({labels.count(label) for label in range(len(TASKS[task].labels))}) == 1


def test_sets():
    """Every size, subjects and styles mixed; twins are two trainings of one LoRA."""
    assert (
        {s.group for s in SETS} == {"2", "3", "4", "6", "8", "twins"} == {s.group for s in QUICK_SETS} | {"8"}
    )
    assert len({s.title for s in SETS}) == len(SETS)
    twins = next(s for s in SETS if s.twins)
    assert [sources(twins, training) for training in "BC"] == [
        [("B", "six"), ("C", "six")],
        [("C", "six"), ("A", "six")],
    ]
    large = LoraSet(("six", "seven", "neon", "slant"))
    assert large.pairs() == [(6, "neon"), (7, "slant"), (6, "slant"), (7, "neon")]
    assert set(large.others()) == {(d, s) for s in ("neon", "slant") for d in (1, 2, 3, 4)}


def test_every_method_is_a_row():
    rows = rows_of()
    assert rows[0].title == BASELINE
    assert {row.options.get("method") for row in rows if not row.learned} == {
        name for name, method in METHODS.items() if "moments" not in method.supplied
    }
    assert {"calibrated", "distilled", "distilled at rank 8"} <= {row.title for row in rows}
    with pytest.raises(ParameterError, match="no row is called 'tise'"):
        rows_of(["tise"])


def test_scores_of_known_shares():
    """Own skills and other subjects as shares of the LoRAs alone, combinations and the base's as they are."""
    alone = {"six": [{(6, "plain"): 0.8}], "neon": [{(d, "neon"): 0.5 for d in range(5)}]}
    merged = dict.fromkeys(KEPT, 0.9) | {(6, "plain"): 0.4, (0, "neon"): 0.45, (6, "neon"): 0.3}
    merged |= {(1, "neon"): 0.5, (2, "neon"): 0.5, (3, "neon"): 0.0, (4, "neon"): 0.25}
    found = score(PAIR, merged, alone)
    assert found.own == pytest.approx(0.85 / 1.3)
    assert found.worst == pytest.approx(0.5)
    assert found.others == pytest.approx(1.25 / 2)
    assert (found.pairs, found.kept) == (pytest.approx(0.3), pytest.approx(0.9))


def test_paired_differences():
    """Mean, difference and standard error against numpy's formulas, on what both rows have."""
    generator = np.random.default_rng(0)
    ours, theirs = generator.random(9), generator.random(9)
    found = summarize(dict(enumerate(ours)), dict(enumerate(theirs[:7])))
    differences = (ours - theirs)[:7]
    assert found.mean == pytest.approx(ours.mean())
    assert (found.count, found.difference) == (9, pytest.approx(differences.mean()))
    assert found.error == pytest.approx(differences.std(ddof=1) / math.sqrt(7))
    assert standard_error([0.3]) is None
    assert summarize({0: 0.5}).difference is None
    with pytest.raises(ValueError, match="nothing"):
        summarize({})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest set by two rows on training B, run twice: the second time everything is there."""
    rows = (Row("linear", "", {"method": "linear"}), Row("ties", "", {"method": "ties", "density": 0.5}))
    plan = Plan((PAIR,), ("B",), rows, FEW)
    file = tmp_path_factory.mktemp("quality") / "scores.jsonl"
    said: list[list[str]] = []
    for resume in (False, True):
        said.append([])
        store = Store(file, resume)
        units = [*alone_units(plan.sets, plan.trainings, plan.amount), *plan.units(plan.rows)]
        work_through(units, store, perform, 1, said[-1].append)
    return plan, Scores(plan, store), said


def test_the_score_of_linear_is_what_merging_by_hand_gives(small):
    _, scores, _ = small
    loras = [load(file_of("B", name)) for name in PAIR.names]
    base = studio()

    def right(merged, prompt):
        with patched(base.unet, merged):
            images = sample(base.unet, base.tokens, [prompt], FEW.own, seed=20_261)[0]
        digit, style = judged(base.judge, images)
        return ((digit == prompt[0]) & (style == STYLES.index(prompt[1]))).float().mean().item()

    own = [(6, "plain"), (0, "neon")]
    alone = [right(merge([lora]), prompt) for lora, prompt in zip(loras, own, strict=True)]
    kept = [right(merge(loras), prompt) for prompt in own]
    found = scores.scores["linear"]["B", PAIR.title]
    assert found.own == pytest.approx(sum(kept) / sum(alone))
    assert found.worst == pytest.approx(min(k / a for k, a in zip(kept, alone, strict=True)))
    assert min(alone) > 0.6


def test_a_run_goes_on_where_it_stopped(small):
    """The second run finds everything in the file and does nothing."""
    _, scores, (first, second) = small
    assert len(first) == 3 and not second
    assert scores.scores["ties"].keys() == scores.scores["linear"].keys()


def test_tables_and_goals(small):
    """Every row is in the tables; goals whose figures are not there are left out."""
    _, scores, _ = small
    drawings = {"drawn": {"own": 8, "others": 1, "pairs": 4, "kept": 2}, "trainings": ["B"],
                "sets": {PAIR.title: "2"}, **scores.figures()}  # fmt: skip
    machine = {"processor": "p", "threads": 1, "python": "3", "date": "d"}
    data = {"machine": machine, "quick": True, "minutes": 0.1, "drawings": drawings, "goals": []}
    assert markdown(data).count("| ties |") == text(data).count("\nties ") == 6
    assert verdicts(data) == []
    row = {
        "groups": {
            "2": {"own": {"mean": 0.96}, "worst": {"mean": 0.7}, "pairs": {"mean": 0.5}, "seconds": 1.0}
        }
    }
    drawings["rows"]["distilled"] = row
    reached = {goal["goal"]: goal["reached"] for goal in verdicts(data)}
    assert reached["distilled, N = 2: own skills"] and not reached["distilled, N = 2: worst LoRA"]
    assert len(GOALS) > len(reached) == 3


def test_the_best_setting_is_chosen(tmp_path):
    """Of a strength that keeps and one that erases, on training A."""
    row = Row("any strength", "", {"method": "linear"}, ({"scale": 0.05}, {"scale": 1.0}))
    found = choose([row], Store(tmp_path / "choose.jsonl", resume=False), 1, (PAIR,))
    options, mean = found["any strength"]
    assert options == {"scale": 1.0} and mean > 0.5


def test_the_readme_says_what_the_run_found():
    """Its table is that of the full run, in percent."""
    data = json.loads(FIGURES.read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line, title in (("added up (`linear`)", "linear"), ("distilled", "distilled")):
        groups = data["drawings"]["rows"][title]["groups"]
        shares = " | ".join(f"{100 * groups[count]['own']['mean']:.0f} %" for count in "23468")
        assert f"| {line} | {shares} |" in readme


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_the_advice_has_the_figures_of_the_run(page):
    """Which method to choose, and what each kept."""
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["drawings"]["rows"]
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())

    def kept(title, group):
        return f"{100 * rows[title]['groups'][group]['own']['mean']:.0f} %"

    def over_linear(title, count):
        own = (rows[each]["groups"][count]["own"]["mean"] for each in (title, "linear"))
        return next(own) - next(own)

    without_data = [row.title for row in rows_of() if not row.learned]
    best = max(over_linear(title, count) for title in without_data for count in "234")
    assert 0.02 < best < 0.03 and "kept more than 3 % over it" in text
    twins = (
        f"kept {kept('linear', 'twins')}, `even` {kept('even', 'twins')} and `mean` {kept('mean', 'twins')}"
    )
    assert twins in text
    added, distilled = kept("linear", "6"), kept("distilled", "6")
    assert re.search(f"of six LoRAs,? the sum kept {added},?( and)? the distilled LoRA {distilled}", text)


def test_the_page_says_what_the_run_found():
    """The tables of docs/quality.md are those of the full run whose figures are kept."""
    data = json.loads(FIGURES.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert with_figures(page, data) == page
    assert not data["quick"] and PICTURE.stat().st_size > 5000
    assert {row.title for row in rows_of()} == set(data["drawings"]["rows"])


@pytest.mark.slow
def test_distilling_keeps_more_than_linear():
    """Four LoRAs of training B from one prompt each."""
    from benchmarks.quality.work import Unit

    four = LoraSet(("six", "seven", "neon", "slant"))
    amount = Amount(own=32, others=1, pairs=1, kept=8)
    rows = tuple(row for row in rows_of() if row.title in ("linear", "distilled"))
    linear, distilled = perform(Unit("B", amount, lora_set=four, rows=rows))
    kept = [sum(result.shares[prompt] for prompt in four.own()) / 4 for result in (linear, distilled)]
    assert kept[1] >= kept[0] + 0.15
    assert sum(distilled.shares[prompt] for prompt in KEPT) / len(KEPT) > 0.8
    assert torch.get_num_threads() == 1
