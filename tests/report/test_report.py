"""The page is told by files, holds what they say and nothing that they do not, and stays small."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from report import results

from fewstep import write_report
from fewstep.report.charts import HEIGHT, LEFT, Point, reach, with_intervals
from fewstep.report.dial import _match
from fewstep.report.ledger import part_of
from fewstep.report.pictures import SMALL, encoded
from fewstep.report.section import Figure, percent, short


class Seen(HTMLParser):
    """What a browser makes of a page: its tags with the names of their attributes, its words, its alternative texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.words, self.alts, self.raw, self.policy = "", [], {}, ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        facts, self.inside = dict(attrs), tag
        self.alts += [facts["alt"]] if "alt" in facts else []
        if facts.get("http-equiv") == "Content-Security-Policy":
            self.policy = facts["content"]

    def handle_data(self, data) -> None:
        if self.inside in ("style", "script"):
            self.raw[self.inside] = data
            self.inside = ""
        else:
            self.words += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def all_kinds(tmp_path):
    results.dial(tmp_path / "dial")
    results.ledger(tmp_path / "ledger")
    results.settling(tmp_path / "settle")
    results.run(tmp_path / "run")
    results.texts(tmp_path / "text")
    results.changes(tmp_path / "changes")
    return tmp_path


def test_one_page_of_all_kinds_told_by_what_stands_in_the_files(all_kinds) -> None:
    names = ("text", "ledger", "dial", "changes", "settle", "run")
    out = write_report([all_kinds / name for name in names], all_kinds / "page.html")
    whole = write_report([all_kinds], all_kinds / "whole.html")  # the folder that all of them stand in
    seen = Seen(out.read_text())
    assert Seen(whole.read_text()).tags == seen.tags
    twice = write_report([all_kinds, all_kinds / "ledger", all_kinds / "." / "dial"], all_kinds / "twice.html")
    assert Seen(twice.read_text()).tags == seen.tags  # what is named twice is shown once
    for said in (
        "Take student.",
        "The student has a Fréchet distance of 2.00 ± 0.50 at 4 network calls (fashion features; lower is better).",
        "The teacher’s best is 1.14 ± 0.50 at 35 network calls",
        "A picture takes the student 80.0 ms, and the teacher 700 ms.",
        "Gained: looks (grey). Lost: quality (Fréchet).", "+50 ± 10 %", "about 70 more samples would tell", "Settled.",
        "The run saw 64 images in 2 steps and 8 seconds, taught by bundled.",
        "Network calls during training, student4,096",
        "EarlyCommit(rule = Threshold(threshold = 0.99))", "With confidence 95 % it changes at most 8 % of answers",
        "By 50 % of the steps, 80 % of the 44 answers had been shown", "first choice at 1 of 2 tokens (50 %)",
        "fewstep measure run", "2 calls need about 900 more images.", "from 3 to 2", "after 64 images", "σ above 0.1",
        "2 of 3 answers differ after the change: 1 became wrong, 0 became right.",
    ):  # fmt: skip
        assert said in seen.words, said
    told = " ".join(seen.words.split())
    assert "It takes 4 network calls in place of 35." not in told.partition("What to do")[2].partition("Line by line")[0]
    assert seen.alts.count("student at 2 network calls, seed 1: a red dress") == 1
    assert len(seen.alts) == 6 * results.SEEDS + 3  # and the sheets of the run
    assert seen.words.index("right before, wrong after") < seen.words.index("right both times")
    assert {tag for tag, _ in seen.tags}.isdisjoint({"iframe", "object", "embed", "form", "base"})
    assert not {"style", "onclick", "onload"} & {name for _, names in seen.tags for name in names}


def test_what_a_result_says_is_text_and_never_markup(tmp_path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{7*7}}{% raw %}"
    for name, say in (("plain", "word"), ("evil", evil)):
        results.dial(tmp_path / name / "dial", name=say, asked=say)
        results.ledger(tmp_path / name / "ledger", name=say)
        results.texts(tmp_path / name / "text", prompt=say, piece=say)
        results.changes(tmp_path / name / "changes", prompt=say)
    plain, hostile = (
        Seen(write_report([tmp_path / name], tmp_path / f"{name}.html").read_text()) for name in ("plain", "evil")
    )
    assert hostile.tags == plain.tags
    assert hostile.words.count(evil) >= 8
    assert any(evil in alt for alt in hostile.alts)
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        allowed = base64.b64encode(hashlib.sha256(hostile.raw[tag].encode()).digest()).decode()
        assert f"{kind} 'sha256-{allowed}'" in hostile.policy
    assert hostile.policy.startswith("default-src 'none'; img-src data:;")


def test_files_outside_the_folder_and_false_pictures_are_not_shown(tmp_path) -> None:
    folder = results.dial(tmp_path / "dial")
    Image.new("L", (12, 4), 255).save(tmp_path / "secret.png")
    content = json.loads((folder / "measure.json").read_text())
    content["pictures"]["files"][:3] = ["../secret.png", "pictures/none.png", "measure.json"]
    (folder / "measure.json").write_text(json.dumps(content))
    Image.new("L", (13, 4)).save(folder / "pictures" / "03.png")  # of another size than is said
    assert len(Seen(write_report([folder], tmp_path / "page.html").read_text()).alts) == 2 * results.SEEDS


def test_a_page_that_would_be_too_large_has_fewer_pictures_or_is_refused(tmp_path, monkeypatch) -> None:
    folder = results.dial(tmp_path / "dial")
    whole = write_report([folder], tmp_path / "page.html").stat().st_size
    monkeypatch.setattr("fewstep.report.page.LARGEST", whole - 1)
    monkeypatch.setattr("fewstep.report.page.PICTURES", (3, 2, 1))
    assert len(Seen(write_report([folder], tmp_path / "page.html").read_text()).alts) == 6 * 2
    monkeypatch.setattr("fewstep.report.page.LARGEST", 1000)
    with pytest.raises(ValueError, match="report fewer results on a page"):
        write_report([folder], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_where_no_weight_moved_there_is_a_sentence_and_no_chart(tmp_path) -> None:
    file = results.ledger(tmp_path / "ledger") / "ledger.json"
    moved = Seen(write_report([tmp_path / "ledger"], tmp_path / "page.html").read_text()).words
    content = json.loads(file.read_text())
    for layer in content["drift"]:
        layer["change"] = 0.0
    file.write_text(json.dumps(content))
    still = Seen(write_report([tmp_path / "ledger"], tmp_path / "page.html").read_text()).words
    assert "No weight moved." in still and "Each bar is a layer" not in still
    assert "No weight moved." not in moved and "Each bar is a layer" in moved


def test_what_is_no_result_ends_in_a_sentence(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text("{}")
    for path, said in (("gone", "there is no"), ("empty", "holds nothing to report"), ("config.json", "is no result")):
        with pytest.raises(ValueError, match=said):
            write_report([tmp_path / path], tmp_path / "page.html")
    damaged = results.ledger(tmp_path / "damaged")
    content = json.loads((damaged / "ledger.json").read_text())
    del content["lines"][0]["verdict"]
    (damaged / "ledger.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ledger.json is damaged or of another version \(KeyError: 'verdict'\)"):
        write_report([damaged], tmp_path / "page.html")
    with pytest.raises(ValueError, match="name at least one"):
        write_report([], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_answers_without_steps_and_results_without_pictures_are_told_as_they_are(tmp_path) -> None:
    (tmp_path / "old.jsonl").write_text('{"prompt": "p", "text": "t", "tokens": 1, "nfe": 1.0}\n')
    assert "does not say at which step" in write_report([tmp_path / "old.jsonl"], tmp_path / "page.html").read_text()
    folder = results.dial(tmp_path / "dial")
    content = json.loads((folder / "measure.json").read_text())
    del content["pictures"]
    (folder / "measure.json").write_text(json.dumps(content))
    assert "Measure again to see them here" in write_report([folder], tmp_path / "page.html").read_text()


def test_figures_have_the_decimals_of_their_values() -> None:
    told = {
        Figure(10.84, 8.74, 12.94): "10.8 ± 2.1",
        Figure(0.02, -0.28, 0.32): "0.020 ± 0.300",
        Figure(1.0, 0.5, 3.0): "1.00 (0.50 to 3.00)",
        Figure(-0.16, -0.2, -0.12): "−0.16 ± 0.04",
    }
    assert {figure: str(figure) for figure in told} == told
    shown = {4.87e-5: "4.9·10⁻⁵", 0.0: "0.0000", 0.0034: "0.0034", 1240.4: "1,240", -71.88: "−71.9", float("inf"): "∞"}
    assert {value: short(value) for value in shown if value} == {v: s for v, s in shown.items() if v}
    assert [percent(0.926), percent(0.1), percent(1)] == [f"{each}\N{NO-BREAK SPACE}%" for each in ("92.6", "10", "100")]


def test_a_strip_shows_the_better_side_on_the_right() -> None:
    lost, gained = reach(0.05, 0.02, 0.08, 0.1, -1.0), reach(0.05, 0.02, 0.08, 0.1, 1.0)
    assert lost.low < lost.value < lost.high < 100 < gained.low < gained.value < gained.high
    assert lost.value + gained.value == pytest.approx(200)
    edge = reach(0.1, 0.1, 0.1, 0.1, 1.0)
    assert edge.value - 100 == pytest.approx(edge.margin, abs=0.1)  # the band ends where "kept" does
    far = reach(9.0, -float("inf"), float("inf"), 0.1, 1.0)
    assert (far.low, far.high) == (2, 198)


def test_a_chart_puts_twice_as_many_calls_equally_far_and_lower_values_lower() -> None:
    points = [Point(calls, 16 / calls, 12 / calls, 20 / calls, "") for calls in (1, 2, 4)]
    (line,) = with_intervals("t", "calls", [("student", 1, points)], "").lines
    first, second, third = line.marks
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.2)
    assert second.y - first.y == pytest.approx(third.y - second.y, abs=0.2)
    assert first.x > LEFT and first.y < third.y < HEIGHT
    assert all(mark.high < mark.y < mark.low for mark in line.marks)
    assert re.fullmatch(r"M[\d.,]+L[\d.,]+L[\d.,]+", line.path)
    below = with_intervals(
        "t", "calls", [("student", 1, [Point(1, 2.0, -1.0, 5.0, "")])], ""
    )  # an interval that ends below 0
    assert below.lines[0].marks[0].low == below.bottom


@pytest.mark.parametrize(
    ("layer", "part"),
    [("down_blocks.0.resnets.1", "down_blocks"), ("conv_in", "conv_in"), ("model.layers.3.mlp", "model.layers")],
)
def test_layers_of_one_part_share_a_colour(layer, part) -> None:
    assert part_of(layer) == part


def test_each_ending_of_a_text_command_has_its_words(tmp_path) -> None:
    """A rule that could not be found, one beside the default, a conversation, seconds, and answers that a cache changed."""
    folder = results.texts(tmp_path / "text")
    told = json.loads((folder / "rule.json").read_text())
    beside = {"steps": 7.0, "changed": 3, "bound": 0.2}
    listed = {"name": "Last", "rule": {"name": "Factor", "factor": 0.5}, "last": [10, 3]}
    (folder / "rule.json").write_text(json.dumps(told | {"beside": beside, "rule": listed}))
    (folder / "none.json").write_text(json.dumps(told | {"factor": None, "changed": 0, "bound": None}))
    turns = [{"role": "user", "content": "how many"}]
    answer = {"messages": turns, "text": "four", "tokens": 1, "nfe": 1.0, "seconds": 0.25}
    (folder / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    changed = {"answers": 1, "n": 4, "answers_share": results.estimate(0.25, 0.1)}
    (folder / "answers.jsonl.receipt.json").write_text(json.dumps(results.RECEIPT | {"changed": changed}))
    words = " ".join(Seen(write_report([folder], tmp_path / "page.html").read_text()).words.split())
    for said in (
        "No threshold was found that keeps 90 % of the answers",
        "The default rule needs 7 steps and changed 3 answers (at most 20 %)",
        "Last(rule = Factor(factor = 0.5), last = [10, 3])",
        "user: how many",
        "1 network call, 1 token, 0.25 seconds",
        "The cache changed 1 of 4 answers (25 %, 95 % interval 15 % to 35 %)",
    ):
        assert said in words


def test_what_cannot_be_read_of_a_run_is_left_out(tmp_path) -> None:
    folder = results.run(tmp_path / "run")
    looks = (folder / "watch.jsonl").read_text().splitlines()
    Image.new("L", (8, 8), 255).save(tmp_path / "secret.png")
    (folder / "watch" / "64.png").write_bytes(b"no picture")
    outside = json.loads(looks[0]) | {"images": 1, "sheet": "../secret.png"}
    (folder / "watch.jsonl").write_text("\n".join([looks[0], "no JSON", "[" * 100_000, json.dumps(outside), *looks[1:]]))
    (folder / "broken.json").write_text("{")
    (folder / "broken.jsonl").write_text("{")
    content = json.loads((folder / "receipt.json").read_text())
    (folder / "receipt.json").write_text(json.dumps(content | {"seconds": 7200.0}))
    page = write_report([folder], tmp_path / "page.html").read_text()
    assert len(re.findall(r"<img[^>]*data:image", page)) == 2 and "2 hours" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_a_large_picture_is_scaled_down_and_a_small_one_is_kept_exactly() -> None:
    def opened(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    small, large = Image.effect_noise((SMALL, 5), 50), Image.new("RGB", (3 * SMALL, 2 * SMALL), "red")
    assert opened(encoded(small)).tobytes() == small.tobytes()
    scaled = opened(encoded(large, side=2 * SMALL))
    assert scaled.format == "WEBP" and scaled.size == (2 * SMALL, round(2 * SMALL * 2 / 3))
    red, green, blue = scaled.convert("RGB").getpixel((3, 3))
    assert red > 245 and green < 10 and blue < 10


def test_a_match_with_prompts_is_a_share_or_a_score() -> None:
    assert _match(Figure(0.5, 0.4, 0.6)) == "50.0 ± 10.0 %"
    assert _match(Figure(27.0, 26.5, 27.5)) == "27.0 ± 0.5"
