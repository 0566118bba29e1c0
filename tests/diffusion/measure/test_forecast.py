"""Power laws through scores: against curves with known numbers, and how often the intervals hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import fewstep
from scipy import optimize, stats

from fewstep.core.intervals import Estimate, left_out
from fewstep.diffusion.forecasting import Forecast, forecast_runs
from fewstep.diffusion.measure.forecast import FAR, Curve, PowerLaw

LAW = PowerLaw(1.0, 400.0, 0.8)
IMAGES = tuple(np.linspace(1500.0, 12000.0, 8))


def curve(law, images=IMAGES, error: float = 0.03, noise=None, correlation: float = 0.0) -> Curve:
    """Points of a law with a relative standard error; without noise they lie on it."""
    truth = np.array([law(n) for n in images])
    values = truth * (1 + (0 if noise is None else noise))
    reach = 1.959963984540054 * error * truth
    return Curve(tuple(images), tuple(Estimate(*each) for each in zip(values, values - reach, values + reach, strict=True)),
                 correlation)  # fmt: skip


def test_points_on_a_law_give_that_law() -> None:
    found = curve(LAW)
    law = found.fit()
    assert [law(n) for n in (1500, 12000, 50_000)] == pytest.approx([LAW(n) for n in (1500, 12000, 50_000)], rel=5e-3)
    assert law.images(1.3) == pytest.approx(LAW.images(1.3), rel=0.01) and LAW(LAW.images(1.3)) == pytest.approx(1.3)
    needed, level = found.needed(1.3), found.predict(math.inf)
    assert needed.low < LAW.images(1.3) < needed.high and level.low < 1.0 < level.high


@pytest.mark.parametrize("place", [3000.0, 40_000.0, math.inf])
def test_the_profile_is_that_of_a_general_optimizer(place: float) -> None:
    """The least χ² among laws that pass through a point, by scipy's bounded least squares from many starts."""
    noise = np.random.default_rng(0).normal(size=8) * 0.03
    found, goal = curve(LAW, noise=noise), 1.25
    y, error = np.array([v.value for v in found.values]), np.array([LAW(n) for n in IMAGES]) * 0.03

    def residuals(p):
        b, c = p
        rise = (np.array(IMAGES) / 12000) ** -c - (0 if math.isinf(place) else (place / 12000) ** -c)
        return (y - goal - b * rise) / error

    best = math.inf
    for c in (0.06, 0.2, 0.5, 1.0, 2.0, 3.5):
        done = optimize.least_squares(residuals, [0.3, c], bounds=([0, 0.05], [10, 4]), xtol=1e-12)
        b, found_c = done.x
        if math.isinf(place) or goal - b * (place / 12000) ** -found_c >= 0:
            best = min(best, 2 * done.cost)
    assert float(found.misfit(place, goal)) == pytest.approx(best, rel=0.01, abs=0.02)


@pytest.mark.parametrize(
    ("law", "scatter", "shared", "least"),
    [
        (LAW, 0.0, 0.0, 0.95),
        (PowerLaw(1.5, 400.0, 0.8), 0.0, 0.0, 0.95),
        (LAW, 0.04, 0.0, 0.89),
        (LAW, 0.0, 0.08, 0.95),
    ],
    ids=["known", "never", "hidden", "shared"],
)
def test_intervals_hold_what_they_should(law: PowerLaw, scatter: float, shared: float, least: float) -> None:
    """Counted on 60 curves, with a scatter that no interval knows, or an error that all points share: so few are in with a
    chance of about one in a hundred. The hidden scatter is a little more than five or six points can show."""
    rng, true, held = np.random.default_rng(1), law.images(1.3), []
    for _ in range(60):
        noise = rng.normal(size=8) * 0.03 + rng.normal(size=8) * scatter + rng.normal() * shared
        whole = math.hypot(0.03, shared)
        found = curve(law, noise=noise, error=whole, correlation=(shared / whole) ** 2)
        needed, later = found.needed(1.3), found.predict(24_000)
        held.append((needed.low <= true <= needed.high, later.low <= law(24_000) <= later.high))
    few = stats.binom.ppf(0.01, 60, least)
    assert np.sum(held, 0).min() >= few


def test_what_never_comes_is_said_so() -> None:
    never = curve(PowerLaw(2.0, 4e6, 2.0)).needed(1.3)
    assert never.value == math.inf and never.high == math.inf and never.low > 12_000
    slow = curve(PowerLaw(0.0, 30.0, 0.3), error=1e-3)
    assert slow.needed(0.3).value == math.inf and slow.fit().images(0.3) > FAR * 12_000


def test_a_curve_that_has_not_begun_to_flatten_is_too_early() -> None:
    def early(n: float) -> float:
        return 40.0 - 8.0 * (n / 12_000) ** 2

    assert curve(early, error=1e-3).settled() is None and curve(LAW).settled() == curve(LAW)
    both = curve(
        lambda n: early(n) if n < 4000 else 40 * (n / 4000) ** -1.5, tuple(np.linspace(1000.0, 12_000.0, 12)), error=1e-2
    )
    settled = both.settled()
    assert settled is not None and 2000 <= settled.images[0] <= 5000


def test_a_goal_that_is_out_of_reach_says_why() -> None:
    """A curve that still falls faster and faster, and one that reaches the goal only long after all that it can tell."""
    never, nowhere = Estimate(math.inf, math.inf, math.inf), Estimate(0.0, 0.0, 0.0)
    falling = curve(lambda n: 40.0 - 8.0 * (n / 12_000) ** 2, error=1e-3)
    early = Forecast(4, "random", 0.3, falling, falling.settled(), LAW, nowhere, never)
    assert "too early to tell" in early.sentence and "still falling" in early.sentence
    slow = curve(PowerLaw(0.0, 30.0, 0.3), error=1e-3)
    late = Forecast(4, "random", 0.3, slow, slow.settled(), slow.fit(), nowhere, slow.needed(0.3))
    assert f"it takes more than {FAR:g} times what it has seen" in late.sentence


@pytest.mark.parametrize(
    ("images", "values", "said"),
    [
        (IMAGES[:4], None, "at least 5 points"),
        ((0.0, *IMAGES[1:]), None, "rise from above 0"),
        ((*IMAGES[:-1], IMAGES[-2]), None, "rise from above 0"),
        (IMAGES, Estimate(1.0, 1.0, 1.0), "an interval around it"),
        (IMAGES, Estimate(math.nan, 0.0, 1.0), "finite value"),
    ],
)
def test_what_is_no_curve_is_refused(images, values, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Curve(tuple(images), (values or Estimate(1.0, 0.9, 1.1),) * len(images))


def write_run(run: Path, law, images, *, factor: float = 1.0) -> None:
    """What a watched run leaves: scores that are means of twenty numbers, so that they have an interval."""
    seeds = np.random.default_rng(0).normal(size=200) * 0.05

    def score(value: float) -> dict:
        each = value * (1 + seeds * factor)
        return {"value": float(each.mean()), "left_out": left_out(lambda rows: [each[rows].mean()], 200)[:, 0].tolist()}

    rows = [{"step": 0, "images": 0, "samples": [{"name": "teacher", "calls": 35, "frechet": {"means": score(2.0)}}]}]
    for n in images:
        students = [{"name": "student", "calls": 2, "frechet": {"means": score(2.0 * law(n)) if law(n) else score(1e-9)}}]
        rows.append({"step": int(n), "images": int(n), "samples": students})
    for row in rows[1:]:  # not proportional to the teacher's, or the ratio would have no interval
        kept = row["samples"][0]["frechet"]["means"]
        kept["left_out"] = [kept["value"] + (v - kept["value"]) * 0.5 for v in kept["left_out"]]
    run.mkdir()
    (run / "watch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_forecast_from_its_looks(tmp_path, monkeypatch, capsys) -> None:
    write_run(tmp_path / "run", PowerLaw(1.0, 800.0, 0.8), IMAGES)
    fewstep(monkeypatch, f"forecast {tmp_path / 'run'} --within 30%")
    said = capsys.readouterr().out
    assert "2 calls within 1.3 x of the checkpoint's best need about" in said and "means features" in said
    (kept,) = json.loads((tmp_path / "run" / "forecast.json").read_text())["forecasts"]
    assert kept["needed"]["value"] == pytest.approx(PowerLaw(1.0, 800.0, 0.8).images(1.3), rel=0.05)
    assert [point["images"] for point in kept["points"]] == list(IMAGES) and kept["sentence"] in said
    (found,) = forecast_runs([str(tmp_path / "run")], within=1.0, out=tmp_path / "other.json")
    assert found.sentence.startswith("2 calls within 2 x of the checkpoint's best: reached")


def test_a_run_that_was_better_before_says_so(tmp_path) -> None:
    write_run(tmp_path / "run", lambda n: 1.5 + (n / 4500 - 1) ** 2, IMAGES)
    (found,) = forecast_runs([str(tmp_path / "run")])
    assert "It was better before: 1.5 [" in found.sentence and "after 4,500 images." in found.sentence


def test_runs_of_different_lengths_are_one_curve(tmp_path) -> None:
    runs = [tmp_path / f"run-{n:.0f}" for n in IMAGES]
    for run, n in zip(runs, IMAGES, strict=True):
        write_run(run, PowerLaw(1.5, 400.0, 0.8), (n / 2, n))
    (found,) = forecast_runs(list(map(str, runs)))
    assert found.curve.images == IMAGES and found.needed.high == math.inf
    assert "not reached by any amount this curve can tell, it levels off at 1.49" in found.sentence


def test_a_run_without_scores_says_how_to_have_them(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(SystemExit) as stopped:
        fewstep(monkeypatch, f"forecast {tmp_path / 'run'}")
    assert stopped.value.code == 2 and "--look-score 250" in capsys.readouterr().err
    write_run(tmp_path / "scored", LAW, IMAGES)
    with pytest.raises(ValueError, match="no scores of 4 calls; choose among 2"):
        forecast_runs([str(tmp_path / "scored")], calls=[4])
    write_run(tmp_path / "other", LAW, IMAGES, factor=2.0)
    with pytest.raises(ValueError, match="different teachers"):
        forecast_runs([str(tmp_path / "scored"), str(tmp_path / "other")])


def test_a_run_with_few_looks_says_how_to_have_more(tmp_path) -> None:
    write_run(tmp_path / "run", LAW, IMAGES[:4])
    with pytest.raises(ValueError, match="at least 5 looks with scores, got 4; tune with a smaller --look-every"):
        forecast_runs([str(tmp_path / "run")])
    assert not (tmp_path / "run" / "forecast.json").exists()


def test_no_run_is_no_forecast() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        forecast_runs([])


def test_a_folder_that_is_not_there_is_no_run_without_scores(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        forecast_runs([str(tmp_path / "nothing")])
