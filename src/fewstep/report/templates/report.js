"use strict";

/* The dial. Every card is in the page; the slider says which one of each model is shown. */
for (const dial of document.querySelectorAll(".dial")) {
  const control = dial.querySelector(".control");
  const slider = control.querySelector("input");
  const output = control.querySelector("output");
  const labels = control.querySelectorAll(".stops span");
  const spoken = dial.querySelector(".spoken");
  const stops = slider.dataset.stops.split(" ").map(Number);
  const models = new Map();
  for (const card of dial.querySelectorAll(".card")) {
    const cards = models.get(card.dataset.model) || [];
    models.set(card.dataset.model, [...cards, card]);
  }
  const show = () => {
    const most = stops[slider.value];
    const said = [];
    const shown = new Set();
    for (const cards of models.values()) {
      const affordable = cards.filter((card) => Number(card.dataset.calls) <= most);
      const chosen = affordable.length ? affordable[affordable.length - 1] : cards[0];
      for (const card of cards) card.hidden = card !== chosen;
      const calls = Number(chosen.dataset.calls);
      const note = chosen.querySelector(".instead");
      note.hidden = calls === most;
      note.textContent = calls < most
        ? `It was not measured at ${most}; this is the nearest number below.`
        : `It was not measured at so few calls; this is its smallest number.`;
      said.push(chosen.dataset.short);
      shown.add(chosen.dataset.calls);
    }
    output.textContent = most;
    slider.setAttribute("aria-valuetext", `${most} network call${most === 1 ? "" : "s"}`);
    spoken.textContent = `Fréchet distance, lower is better. ${said.join("; ")}.`;
    labels.forEach((label, place) => label.classList.toggle("on", place === Number(slider.value)));
    for (const chart of dial.querySelectorAll(".chart")) {
      const point = chart.querySelector(`.point[data-calls="${most}"]`);
      const now = chart.querySelector(".now");
      if (point) now.setAttribute("d", now.getAttribute("d").replace(/^M[-\d.]+/, `M${point.dataset.x}`));
    }
  };
  slider.addEventListener("input", show);
  control.hidden = false;
  show();
}

/* Answers. Tokens decided after the chosen step are blank. */
for (const decoding of document.querySelectorAll(".decoding")) {
  const control = decoding.querySelector(".control");
  const slider = control.querySelector("input");
  const output = control.querySelector("output");
  const tokens = decoding.querySelectorAll(".tokens .token");
  const show = () => {
    const now = Number(slider.value);
    const last = now === Number(slider.max);
    output.textContent = last ? "the last" : now;
    slider.setAttribute("aria-valuetext", last ? "the last step" : `step ${now}`);
    for (const token of tokens) token.classList.toggle("later", Number(token.dataset.step) > now);
  };
  slider.addEventListener("input", show);
  control.hidden = false;
  show();
}
