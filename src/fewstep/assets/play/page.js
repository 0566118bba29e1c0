"use strict";

const at = (id) => document.getElementById(id);
const DELAY = 120; // milliseconds after the last change
const WHOLE = ["steps", "teacher_steps", "seed", "n", "label"];
let offers, sides, waiting, asking;

function whole(id) {
  const text = at(id).value.trim();
  return text === "" ? null : Number(text);
}

function asked(side) {
  const told = { side };
  for (const id of [...WHOLE, "number", "guidance", "strength"]) {
    if (!at(`${id}-field`)?.hidden) told[id] = whole(id);
  }
  if (!offers.any) told.steps = null;
  if (offers.prompt) told.prompt = at("prompt").value;
  return told;
}

function say(sentence) {
  at("wrong").textContent = sentence;
  at("wrong").hidden = !sentence;
}

function show(side, found) {
  const list = side.querySelector(".pictures");
  const sound = found.kind.startsWith("audio");
  list.classList.toggle("sound", sound);
  list.replaceChildren(...found.files.map((file, k) => {
    const item = document.createElement("li");
    const what = document.createElement(sound ? "audio" : "img");
    what.src = file;
    if (sound) { what.controls = true; what.setAttribute("aria-label", `seed ${found.seeds[k]}`); } else what.alt = `seed ${found.seeds[k]}`;
    what.title = `seed ${found.seeds[k]}`;
    item.append(what);
    return item;
  }));
  const calls = Math.round(found.calls * 100) / 100;
  const figures = side.querySelector(".figures");
  figures.innerHTML = "<strong></strong> network call<span></span> a sample, <strong></strong> s for <span></span>";
  const [count, plural, seconds, all] = figures.children;
  count.textContent = calls;
  plural.textContent = calls === 1 ? "" : "s";
  seconds.textContent = found.seconds.toFixed(2);
  all.textContent = found.seeds.length === 1 ? "one sample" : `all ${found.seeds.length}`;
  side.querySelector("code").textContent = found.command;
}

async function draw() {
  asking?.abort();
  const mine = (asking = new AbortController());
  for (const side of sides) side.setAttribute("aria-busy", "true");
  try {
    for (const side of sides) { // one after another: the first is there soonest
      const answer = await fetch("draw", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(asked(side.dataset.side)),
        signal: mine.signal,
      });
      if (answer.status === 204) return;
      if (!answer.ok) throw new Error(`The model stopped with an error (${answer.status}); the terminal says which.`);
      const found = await answer.json();
      if (found.sentence) throw new Error(found.sentence);
      show(side, found);
      side.setAttribute("aria-busy", "false");
      say("");
    }
  } catch (error) {
    if (mine.signal.aborted) return;
    for (const side of sides) side.setAttribute("aria-busy", "false");
    say(error instanceof TypeError ? "There is no answer: fewstep play has ended. Start it again in the terminal." : error.message);
  }
}

function later() {
  for (const id of ["steps", "strength", "number"]) at(`${id}-shown`).textContent = at(id).value;
  clearTimeout(waiting);
  waiting = setTimeout(draw, DELAY);
}

function section(side, title) {
  const made = document.createElement("section");
  made.dataset.side = side;
  made.innerHTML = '<h2></h2><p class="figures" aria-live="polite"></p><ul class="pictures"></ul><code tabindex="0" aria-label="command that draws the same"></code>';
  made.querySelector("h2").textContent = title;
  return made;
}

async function begin() {
  offers = await (await fetch("offers")).json();
  at("name").textContent = offers.name + (offers.teacher ? ` beside ${offers.teacher}` : "");
  document.title = `${offers.name} – fewstep play`;
  for (const id of ["prompt", "number", "strength"]) at(`${id}-field`).hidden = !offers[id];
  at("guidance-field").hidden = !offers.guided;
  at("guidance").value = offers.guidance ?? "";
  if (!offers.teacher) at("guidance-field").querySelector("label").textContent = "Guidance";
  at("label-field").hidden = !offers.classes;
  for (let k = 0; k < (offers.classes ?? 0); k++) at("label").append(new Option(String(k), String(k)));
  at("steps").max = Math.max(offers.student ? 16 : offers.most, offers.steps);
  at("steps").value = offers.steps;
  at("steps").disabled = !offers.any;
  at("teacher_steps-field").hidden = !offers.teacher;
  at("teacher_steps").value = offers.teacher_steps ?? "";
  at("n").max = offers.n;
  if (offers.prompt) at("prompt").value = "a picture";
  sides = [section("model", offers.student ? "Student" : "Model")];
  if (offers.teacher) sides.push(section("few", "Teacher in as few calls"), section("teacher", "Teacher"));
  at("sides").replaceChildren(...sides);
  at("asks").addEventListener("input", later);
  at("asks").addEventListener("submit", (event) => event.preventDefault());
  at("others").addEventListener("click", () => { at("seed").value = (whole("seed") ?? 0) + (whole("n") ?? 1); later(); });
  later();
}

begin().catch(() => say("There is no answer: fewstep play has ended. Start it again in the terminal."));
