"""The page to play with, as a person has it: the command in a process of its own, a real browser, and Ctrl-C."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import begun, fewstep, tiny
from forked import Forked

from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.model import Model
from fewstep.diffusion.playing import Ask, LeftError, Player
from fewstep.diffusion.walk import Consistency, Segments
from fewstep.play import read, serve

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone
CHROMIUM = shutil.which("chromium")
QUIET = [  # a browser that asks nobody anything by itself
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds


@pytest.fixture
def student(place) -> Path:
    save(Model(tiny(size=28), Consistency(2)), place / "student")
    return place


@pytest.fixture
def served(student) -> Iterator[tuple[Forked, str]]:
    """`fewstep play student --teacher teacher`, and where its page is."""
    for package in ("starlette", "uvicorn", "psutil"):
        pytest.importorskip(package)
    with begun("play student --teacher teacher --port 0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[0]


def asked(address: str, told: object, host: str | None = None, kind: str = "application/json") -> tuple[int, dict]:
    """What the page's server answers to a question; only what it draws and what is wrong is JSON."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE / 1000)
    headers = {"Content-Type": kind} | ({} if host is None else {"Host": host})
    connection.request("POST", "/draw", json.dumps(told), headers)
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, json.loads(body) if body.startswith(b"{") else {}


def test_nobody_but_this_machine_and_this_page_is_answered_and_ctrl_c_ends_it(served, monkeypatch) -> None:
    import psutil

    process, address = served
    port = int(address.rpartition(":")[2])
    own = [each for places in psutil.net_if_addrs().values() for each in places if each.family == socket.AF_INET]
    for other in {"127.0.0.2", *(each.address for each in own)}:
        if other != "127.0.0.1":
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=5)
    assert asked(address, {"side": "model"}, host="evil.example")[0] == 400
    assert "no request of the page" in asked(address, {"side": "model"}, kind="text/plain")[1]["sentence"]
    status, found = asked(address, {"side": "model", "seed": 5, "n": 3, "steps": 3})
    assert (status, found["calls"], found["seeds"]) == (200, 3, [5, 6, 7])
    fewstep(monkeypatch, found["command"].removeprefix("fewstep "))
    assert [base64.b64decode(file.partition(",")[2]) for file in found["files"]] == [
        Path(f"samples/{seed:06d}.png").read_bytes() for seed in (5, 6, 7)
    ]
    page = http.client.HTTPConnection("127.0.0.1", port)
    for path in ("/", "/offers"):
        page.request("GET", path)
        answer = page.getresponse()
        body = answer.read()
        assert answer.status == 200 and (
            json.loads(body)["teacher"] == "teacher" if path == "/offers" else b"<html" in body
        )
    assert "1000 timesteps, too few" in asked(address, {"side": "few", "n": 1, "steps": 70_000})[1]["sentence"]

    connections = psutil.Process(process.pid).net_connections()
    assert {place.ip for each in connections for place in (each.laddr, each.raddr) if place} <= {"127.0.0.1"}
    long = http.client.HTTPConnection("127.0.0.1", port)
    long.request("POST", "/draw", '{"side": "model", "steps": 100000}', {"Content-Type": "application/json"})
    process.send_signal(signal.SIGINT)
    assert (process.stdout.read(), process.wait()) == ("ended\n", 0)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
def test_a_browser_shows_it(served) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    _, address = served
    with sync.sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        requests, said = list[str](), list[str]()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))

        def shown(side: str, calls: int, first: int) -> list[str]:
            """The pictures of a side once they are those of so many calls and of that seed."""
            section = page.locator(f"section[data-side={side}][aria-busy=false]")
            section.get_by_text(f"{calls} network call").wait_for()
            section.get_by_alt_text(f"seed {first}", exact=True).wait_for()
            count = int(page.get_by_label("Samples").input_value())
            section.get_by_alt_text(f"seed {first + count}", exact=True).wait_for(state="detached")
            section.get_by_alt_text(f"seed {first + count - 1}", exact=True).wait_for()
            return [picture.get_attribute("src") for picture in section.locator("img").all()]

        page.goto(address)
        page.get_by_label("Steps of the teacher").fill("3")
        page.get_by_label("Samples").fill("2")
        two = shown("model", 2, 0)
        assert len(two) == 2 and all(each.startswith("data:image/png;base64,") for each in two)
        few, teacher = shown("few", 2, 0), shown("teacher", 5, 0)
        assert len({*two, *few, *teacher}) == 6
        page.get_by_label("Steps", exact=False).first.press("ArrowRight")
        three = shown("model", 3, 0)
        assert not {*two} & {*three}
        page.get_by_role("button", name="Other seeds").click()
        assert not {*three} & {*shown("model", 3, 2)} and page.get_by_label("First seed").input_value() == "2"
        page.get_by_label("First seed").fill("0")
        assert shown("model", 3, 0) == three, "a seed is the same picture every time"
        page.get_by_label("Samples").fill("99")
        page.get_by_role("alert").get_by_text("at most 16 samples are drawn at once").wait_for()
        page.get_by_label("Samples").fill("1")
        assert shown("model", 3, 0) == three[:1] and page.get_by_role("alert").is_hidden()
        assert requests and all(each.startswith((address, "data:")) for each in requests) and not said


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([], "no request of the page"),
        ({"side": "nobody"}, "no request of the page"),
        ({"side": "model", "seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"side": "model", "steps": True}, "steps must be a whole number"),
        ({"side": "model", "guidance": "much"}, "guidance must be a number"),
        ({"side": "model", "prompt": 3}, "a prompt is a text"),
        ({"side": "model", "n": 0}, "n starts at 1"),
        ({"side": "model", "seed": 2**80}, "must be below"),
        ({"side": "model", "strength": float("nan")}, "strength starts at 0"),
        ({"side": "model", "out": "/etc"}, "has no setting out"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(told, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(told)


def test_what_cannot_be_drawn_is_one_sentence(student) -> None:
    save(Model(tiny(size=28), Segments(3)), student / "segments")
    player = Player("segments")
    assert not player.offers["any"] and player.offers["teacher"] is None
    for side, ask, sentence in (
        ("model", Ask(steps=2), "tuned for 3 steps"),
        ("model", Ask(label=1), "takes no --label"),
        ("model", Ask(strength=0.5), "only LoRA students have a strength"),
        ("teacher", Ask(), "start it with --teacher"),
    ):
        with pytest.raises(ValueError, match=sentence):
            player.draw(side, ask)
    teacher = Player("segments", "teacher").draw("teacher", Ask(teacher_steps=2, n=1, seed=3))
    assert teacher.command.startswith("fewstep sample teacher ") and "--steps 2" in teacher.command
    assert teacher.files == Player("teacher").draw("model", Ask(steps=2, n=1, seed=3)).files
    with pytest.raises(ValueError, match="at most 16 samples"):
        Ask(n=17)
    save(Model(tiny(channels=4), Segments(3)), student / "latents")
    with pytest.raises(ValueError, match="makes latents"):
        Player("latents")
    with pytest.raises(LeftError):
        player.draw("model", Ask(), lambda: True)
    with pytest.raises(ValueError, match="is a student"):
        Player("segments", "student")
    save(Model(tiny(size=8), Consistency(2)), student / "small")
    with pytest.raises(ValueError, match="another shape"):
        Player("small", "teacher")


def test_a_pipeline_draws_what_sample_draws(folders, tmp_path, monkeypatch) -> None:
    folder = folders("stable_diffusion")
    player = Player(str(folder))
    offers = player.offers
    assert offers["prompt"] and offers["guided"] and not offers["strength"] and offers["classes"] is None
    monkeypatch.chdir(tmp_path)
    found = player.draw("model", Ask(steps=2, n=2, prompt="a red boot", guidance=3.0))
    fewstep(monkeypatch, "sample " + str(folder) + " --out samples --steps 2 --n 2 --prompt=boot --guidance 3.0")
    assert found.command.endswith("--n 2 --seed 0 --steps 2 --prompt 'a red boot' --guidance 3.0") and found.calls == 4
    boot = player.draw("model", Ask(steps=2, n=2, prompt="boot", guidance=3.0))
    assert list(boot.files) == [Path(f"samples/{seed:06d}.png").read_bytes() for seed in (0, 1)] != list(found.files)


def test_the_strength_of_a_lora_is_a_dial(place, monkeypatch) -> None:
    fewstep(monkeypatch, "tune teacher --data data.npz --out run --images 16 --batch 8 --lora 2 --rate 1")
    player = Player("run", "teacher")
    assert player.offers["strength"]
    at = {strength: player.draw("model", Ask(steps=2, n=1, strength=strength)).files for strength in (0.0, 0.5, 1.0)}
    assert at[1.0] == player.draw("model", Ask(steps=2, n=1)).files and len(set(at.values())) == 3


def test_without_its_packages_or_a_free_port_it_says_so(monkeypatch, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        pytest.importorskip("uvicorn")
        with pytest.raises(ValueError, match="choose another with --port"):
            serve(None, port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="choose another with --port"):
        serve(None, port=70_000)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match="2"):
        fewstep(monkeypatch, "play nowhere")
    assert "this needs uvicorn, which is not installed: pip install 'fewstep[play]'" in capsys.readouterr().err
