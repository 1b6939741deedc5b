"use strict";
// For each test set, a class and a score are chosen by any of its controls and hold for all its parts.
for (const set of document.querySelectorAll("[data-test-set]")) {
  const find = (selector, within = set) => [...within.querySelectorAll(selector)];
  const line = (name) => document.getElementById(`${set.dataset.testSet}-${name}`);
  const data = JSON.parse(set.querySelector("script").textContent);
  const all = data.boxes.length - 1;  // the row of all classes together
  let label = all, score = +set.querySelector("input[type=range]").value;
  const isOwn = (k) => label === all || k === label;
  const count = (number) => number.toLocaleString("en");
  const percent = (part, whole) => whole ? `${Math.round(100 * part / whole)}%` : "–";

  function total() {
    const i = Math.round(100 * score), boxes = data.boxes[label];
    const right = data.right[label][i], detections = data.detections[label][i];
    return `On the whole test set: ${count(right)} of ${count(boxes)} boxes detected `
      + `(recall ${percent(right, boxes)}), ${count(boxes - right)} missed, `
      + `${count(detections - right)} wrong detections (precision ${percent(right, detections)}).`;
  }

  function image(shot) {
    const tally = { right: 0, wrong: 0, missed: 0 };
    for (const box of find(".box", shot)) {
      const reached = +(box.dataset.score ?? -1) >= score;
      if ("truth" in box.dataset && !box.classList.contains("crowd")) {
        box.classList.toggle("missed", !reached);
        box.classList.toggle("truth", reached);
      }
      const shown = isOwn(+box.dataset.label) && (reached || "truth" in box.dataset);
      box.toggleAttribute("hidden", !shown);
      for (const kind in tally) if (shown && box.classList.contains(kind)) tally[kind] += 1;
    }
    shot.querySelector(".tally").textContent =
      `${tally.right} correct, ${tally.wrong} wrong, ${tally.missed} missed`;
  }

  function recallChart() {
    for (const curve of document.querySelectorAll(`[id^="${set.dataset.testSet}-recall-"]`)) {
      const k = curve.id.split("-").pop();
      curve.toggleAttribute("hidden", k !== "mean" && !isOwn(+k));
    }
  }

  function scoreChart() {
    const axes = line("axes-score").getBBox();
    const x = (i) => (axes.x + axes.width * i / 100).toFixed(1);
    const draw = (name, shares) => {
      const points = shares.map((share, i) => Number.isFinite(share)
        ? `${x(i)} ${(axes.y + axes.height * (1 - share)).toFixed(1)}` : null);
      line(name).querySelector("path").setAttribute("d", points.map((point, i) =>
        point && `${i && points[i - 1] ? "L" : "M"}${point}`).join(""));
    };
    const right = data.right[label], detections = data.detections[label], boxes = data.boxes[label];
    draw("precision", right.map((n, i) => n / detections[i]));
    draw("recall", right.map((n) => n / boxes));
    draw("F1", right.map((n, i) => 2 * n / (detections[i] + boxes)));
    line("mark").querySelector("path").setAttribute("d",
      `M${x(100 * score)} ${axes.y}v${axes.height}`);
  }

  function update() {
    for (const choice of find("select")) choice.value = label;
    for (const slider of find("input[type=range]")) slider.value = score;
    for (const output of find("output")) output.textContent = score.toFixed(2);
    for (const sentence of find(".total")) sentence.textContent = total();
    for (const shot of find(".shot")) image(shot);
    recallChart();
    scoreChart();
    const nearest = Math.min(9, Math.max(1, Math.round(10 * score)));
    for (const table of find(".confusion"))
      table.hidden = Math.round(10 * table.dataset.from) !== nearest;
  }

  for (const choice of find("select"))
    choice.addEventListener("change", () => { label = +choice.value; update(); });
  for (const slider of find("input[type=range]"))
    slider.addEventListener("input", () => { score = +slider.value; update(); });
  for (const frame of find(".frame"))
    frame.addEventListener("click", () => frame.parentElement.classList.toggle("large"));
  for (const controls of find(".controls")) controls.hidden = false;
  update();
}
