"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const find = (selector, within = document) => [...within.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // All text enters the page by textContent: names are never parsed as HTML.
  function element(parent, tag, attributes = {}, text = null) {
    const made = parent.namespaceURI === SVG || tag === "svg"
      ? document.createElementNS(SVG, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return parent.appendChild(made);
  }

  // ------------------------------------------------------------ numbers

  function show(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && size < 0.001) return value.toExponential(1).replace(".0e", "e");
    if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en");
    return String(+value.toPrecision(3));
  }

  const short = (value) => Math.abs(value) >= 10000 ? `${show(value / 1000)}k` : show(value);

  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((f) => f * power >= rough) * power;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
      found.push(+(i * step).toPrecision(12));
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const f of [1, 2, 5]) found.push(+(f * 10 ** power).toPrecision(3));
    const within = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    return within.length > 6 ? within.filter((v) => /^(0\.0*)?10*$/.test(String(v))) : within;
  }

  // ------------------------------------------------------------ line charts
  // A spec: {x: {label, range}, y: {label, range, log}, mark, series: [{name, style, x, y}]}, where
  // style is "s0" to "s6", "faint" or "bold", with "dash" beside it or not, and nulls are gaps.

  function chart(host) {
    host.classList.add("chart");
    const legend = element(host, "div", { class: "legend" });
    const plot = element(host, "div", { class: "plot", tabindex: "0" });
    const tip = element(plot, "div", { class: "tip", hidden: "" });
    let spec = null, picture = null, place = null;

    function draw() {
      const width = plot.clientWidth;
      if (!spec || width < 50) return;
      picture?.remove();
      const height = width < 480 ? 230 : 270;
      const points = spec.series.flatMap((s) => s.y.filter((v) => v !== null));
      const steps = spec.series.flatMap((s) => s.x);
      const range = (axis, values) => axis.range ?? [Math.min(...values), Math.max(...values)];
      let [left, right] = range(spec.x, steps), [low, high] = range(spec.y, points);
      if (left === right) [left, right] = [left - 1, right + 1];
      if (!spec.y.range && !spec.y.log) [low, high] = [Math.min(0, low), high * 1.04];
      if (low === high) high = low + 1;
      const rows = spec.y.log ? logTicks(low, high) : ticks(low, high, 5);
      const edge = Math.max(...rows.map((v) => short(v).length), 2) * 7.2 + 14;
      const [x0, x1, y0, y1] = [edge, width - 18, height - 40, 12];
      const scale = spec.y.log ? Math.log : (v) => v;
      const toX = (v) => x0 + (v - left) / (right - left) * (x1 - x0);
      const toY = (v) => y0 - (scale(v) - scale(low)) / (scale(high) - scale(low)) * (y0 - y1);

      const label = `${spec.y.label} over ${spec.x.label}: ${spec.series.map((s) => s.name).join(", ")}`;
      picture = element(plot, "svg", { width, height, role: "img", "aria-label": label });
      for (const v of rows) {
        element(picture, "line", { x1: x0, x2: x1, y1: toY(v), y2: toY(v), class: "rule" });
        element(picture, "text", { x: x0 - 8, y: toY(v) + 4, class: "end" }, short(v));
      }
      for (const v of ticks(left, right, width < 480 ? 4 : 7))
        element(picture, "text", { x: toX(v), y: y0 + 17, class: "middle" }, short(v));
      element(picture, "text", { x: (x0 + x1) / 2, y: height - 5, class: "middle axis" }, spec.x.label);
      if (spec.mark !== undefined)
        element(picture, "line", { x1: toX(spec.mark), x2: toX(spec.mark), y1: y0, y2: y1, class: "mark" });
      for (const s of spec.series) {
        const path = s.x.map((v, i) => s.y[i] === null ? "" :
          `${i && s.y[i - 1] !== null ? "L" : "M"}${toX(v).toFixed(1)} ${toY(s.y[i]).toFixed(1)}`);
        element(picture, "path", { d: path.join(""), class: `line ${s.style}` });
        if (s.x.length < 25)
          s.x.forEach((v, i) => s.y[i] !== null &&
            element(picture, "circle", { cx: toX(v), cy: toY(s.y[i]), r: 3, class: `dot ${s.style}` }));
      }

      const cursor = element(picture, "line", { y1: y0, y2: y1, class: "cursor", visibility: "hidden" });
      const known = [...new Set(steps)].sort((a, b) => a - b);
      place = (at, isPixel) => {
        const near = (values, x) => values.reduce((best, v, i) =>
          Math.abs(toX(v) - x) < Math.abs(toX(values[best]) - x) ? i : best, 0);
        const index = isPixel ? near(known, at) : Math.max(0, Math.min(known.length - 1, at));
        const x = toX(known[index]);
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", "visible");
        tip.replaceChildren();
        element(tip, "b", {}, `${spec.x.label} ${show(known[index])}`);
        for (const s of spec.series) {
          const i = near(s.x, x);
          if (s.style.startsWith("faint") || !s.x.length || Math.abs(toX(s.x[i]) - x) > 12) continue;
          const row = element(tip, "div");
          sample(row, s.style);
          element(row, "span", {}, s.name);
          element(row, "b", {}, show(s.y[i]));
        }
        tip.hidden = false;
        tip.style.left = `${Math.max(0, Math.min(width - tip.offsetWidth, x < width / 2 ? x + 12 : x - 12 - tip.offsetWidth))}px`;
        return index;
      };
    }

    function hide() {
      tip.hidden = true;
      picture?.querySelector(".cursor")?.setAttribute("visibility", "hidden");
    }
    let index = 0;
    const point = (event) => {
      if (place) index = place(event.clientX - plot.getBoundingClientRect().left, true);
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && place) { index = place(index + by, false); event.preventDefault(); }
    });
    let drawn = 0;
    new ResizeObserver(() => {
      if (plot.clientWidth !== drawn) { drawn = plot.clientWidth; hide(); draw(); }
    }).observe(plot);

    return (next) => {
      spec = next;
      legend.replaceChildren();
      const named = spec.series.filter((s) => !s.style.startsWith("faint"));
      for (const s of named) {
        const entry = element(legend, "span", { class: "entry" });
        sample(entry, s.style);
        element(entry, "span", {}, s.name);
      }
      legend.hidden = spec.series.length < 2;
      hide();
      draw();
    };
  }

  function sample(parent, style) {
    const drawn = element(parent, "svg", { width: 26, height: 10, "aria-hidden": "true" });
    element(drawn, "line", { x1: 1, x2: 25, y1: 5, y2: 5, class: `line ${style}` });
  }

  // ------------------------------------------------------------ a test set

  const OUTLINES = [
    ["right", "found"], ["wrong", "wrong"], ["missed", "missed"], ["truth", "ground truth"],
  ];

  function testSet(room) {
    const set = read(`${room.id}-data`);
    const state = { label: "", score: set.threshold, shown: new Set(OUTLINES.map(([kind]) => kind)) };
    const watchers = [];
    const changed = () => watchers.forEach((watch) => watch());

    for (const place of find("[data-controls]", room)) {
      const wanted = place.dataset.controls.split(" ");
      if (wanted.includes("class") && set.classes.length > 1) {
        const choice = element(place, "select", { "aria-label": "class" });
        element(choice, "option", { value: "" }, "all classes");
        set.classes.forEach((name, i) => element(choice, "option", { value: i }, name));
        choice.addEventListener("change", () => { state.label = choice.value; changed(); });
        watchers.push(() => { choice.value = state.label; });
      }
      if (wanted.includes("score")) {
        const line = element(place, "label", { class: "wide" });
        const words = element(line, "span");
        const slider = element(line, "input", { type: "range", min: 0.05, max: 0.99, step: 0.01 });
        slider.addEventListener("input", () => { state.score = +slider.value; changed(); });
        watchers.push(() => {
          slider.value = state.score;
          words.textContent = `score from ${state.score.toFixed(2)}`;
        });
      }
      if (wanted.includes("shown"))
        for (const [kind, name] of OUTLINES) {
          const line = element(place, "label", { class: "tick" });
          const box = element(line, "input", { type: "checkbox", value: kind });
          box.checked = true;
          const drawn = element(line, "svg", { width: 22, height: 16, "aria-hidden": "true" });
          outline(drawn, kind, 2, 2, 18, 12);
          if (kind === "wrong") element(drawn, "path", { d: "M8 5l6 6m0 -6l-6 6", class: "side" });
          element(line, "span", {}, name);
          box.addEventListener("change", () => {
            state.shown[box.checked ? "add" : "delete"](kind);
            changed();
          });
        }
    }

    accuracy(room, set, state, watchers);
    for (const figure of find(".shot", room)) picture(figure, set, state, watchers);
    for (const matrix of find(".confusion", room)) confusion(matrix, set);
    for (const more of find("button.more", room)) {
      more.hidden = false;
      const hidden = find(".shot.later", more.parentElement);
      hidden.forEach((figure) => { figure.hidden = true; });
      more.addEventListener("click", () => {
        hidden.forEach((figure) => { figure.hidden = false; });
        more.remove();
      });
    }
    changed();
  }

  // Precision and recall, as curves and at the score that is chosen.
  function accuracy(room, set, state, watchers) {
    const curve = find("[data-curve=recall]", room).map(chart)[0];
    const scores = find("[data-curve=score]", room).map(chart)[0];
    if (!set.scores) return;
    const share = (value) => value === null ? "–" : `${Math.round(value * 100)}%`;

    if (curve) watchers.push(() => {
      const recall = set.scores.map((_, i) => i / 100);
      const line = (name, style, y) => ({ name, style, x: recall, y });
      let series;
      if (state.label !== "" || set.curves.length === 1) {
        const own = set.curves[state.label === "" ? 0 : +state.label];
        series = [["0.50", "s0"], ["0.75", "s1"], ["0.50:0.95", "s2 dash"]]
          .filter(([iou]) => own?.[iou]).map(([iou, style]) => line(`IoU ${iou}`, style, own[iou]));
      } else {
        const many = set.classes.length > 7;
        series = set.curves.map((own, i) => own["0.50"] &&
          line(set.classes[i], many ? "faint" : `s${i}`, own["0.50"])).filter(Boolean);
        if (set.mean["0.50"]) series.push(line("mean", "bold", set.mean["0.50"]));
      }
      curve({
        x: { label: "recall", range: [0, 1] }, y: { label: "precision", range: [0, 1] }, series,
      });
    });
    if (scores) watchers.push(() => {
      const own = state.label === "" ? set.all : set.each[+state.label];
      const series = [["precision", "s0"], ["recall", "s1"], ["f1", "s2 dash"]].map(([key, style]) =>
        ({ name: key === "f1" ? "F1" : key, style, x: set.scores, y: own[key] }));
      scores({
        x: { label: "score", range: [0, 1] }, y: { label: "share", range: [0, 1] }, series,
        mark: state.score,
      });
    });
    for (const words of find("[data-tally]", room)) watchers.push(() => {
      const own = state.label === "" ? set.all : set.each[+state.label];
      const i = Math.round(state.score * 100);
      const [found, all] = [own.found[i], own.detections[i]];
      words.textContent = `On the whole test set: ${found.toLocaleString("en")} of `
        + `${own.boxes.toLocaleString("en")} boxes found (recall ${share(own.recall[i])}), `
        + `${(own.boxes - found).toLocaleString("en")} missed, `
        + `${(all - found).toLocaleString("en")} detections wrong (precision ${share(own.precision[i])}).`;
    });
  }

  function outline(parent, kind, x, y, width, height) {
    const sides = { x, y, width: Math.max(1, width), height: Math.max(1, height) };
    element(parent, "rect", { ...sides, class: "halo" });
    element(parent, "rect", { ...sides, class: "side" });
    parent.classList.add("box", kind);
  }

  function picture(figure, set, state, watchers) {
    const own = set.pictures[+figure.dataset.picture];
    const frame = figure.querySelector(".frame");
    const cover = element(frame, "svg", { viewBox: `0 0 1 1`, "aria-hidden": "true" });
    const tally = figure.querySelector(".tally");
    const isOwn = (label) => state.label === "" || label === +state.label;

    function draw() {
      const width = frame.clientWidth, scale = width / figure.dataset.width;
      const height = figure.dataset.height * scale;
      if (width < 10) return;
      cover.setAttribute("viewBox", `0 0 ${width} ${height}`);
      cover.replaceChildren();
      const count = { right: 0, wrong: 0, missed: 0 };
      const names = [];
      const add = (kind, [x0, y0, x1, y1], name) => {
        if (kind in count) count[kind] += 1;
        if (!state.shown.has(kind)) return;
        const group = element(cover, "g");
        const [x, y] = [x0 * scale, y0 * scale];
        outline(group, kind, x, y, (x1 - x0) * scale, (y1 - y0) * scale);
        element(group, "title", {}, name);
        if (kind !== "truth") names.push([group, kind, x, y, (y1 - y0) * scale, name]);
      };
      for (const [box, label, crowd, found] of own.truths) {
        if (!isOwn(label)) continue;
        const missed = !crowd && (found === null || found < state.score);
        add(missed ? "missed" : "truth", box, `${set.classes[label]}${crowd ? ", a crowd" : ""}`);
      }
      for (const [box, label, score, kind] of [...own.detections].reverse()) {
        if (!isOwn(label) || score < state.score || kind === "ignored") continue;
        const why = width > 480 && set.kinds[kind] ? `: ${set.kinds[kind]}` : "";
        const name = `${set.classes[label]} ${score.toFixed(2)}${why}`;
        if (kind === "right") add("right", box, name);
        else add("wrong", box, `\u00d7 ${name}`);
      }
      // Names over all outlines, those of mistakes last: they may cover others.
      const order = ["right", "missed", "wrong"];
      const isCrowded = names.length > 8 && width < 480;
      cover.classList.toggle("crowded", isCrowded);
      const line = isCrowded ? 13 : 16;
      names.sort((a, b) => order.indexOf(a[1]) - order.indexOf(b[1]));
      for (const [group, kind, x, y, high, name] of names) {
        const text = element(group, "text", { class: "name" }, name.length > 34 ? `${name.slice(0, 33)}…` : name);
        const long = text.getComputedTextLength() + 6;
        const left = Math.max(0, Math.min(x, width - long));
        const top = y >= line ? y - line : kind === "missed" ? Math.min(y + high, height - line) : y;
        text.setAttribute("x", left + 3);
        text.setAttribute("y", top + 0.77 * line);
        group.insertBefore(
          element(group, "rect", { x: left, y: top, width: long, height: line, class: "plate" }), text);
        cover.append(group);
      }
      tally.textContent = `${count.right} found, ${count.wrong} wrong, ${count.missed} missed`;
    }

    watchers.push(draw);
    new ResizeObserver(draw).observe(frame);
    frame.title = "larger or smaller";
    frame.addEventListener("click", () => figure.classList.toggle("large"));
  }

  function confusion(matrix, set) {
    const place = matrix.closest("section").querySelector("[data-confusion]");
    const line = element(place, "label");
    element(line, "span", {}, "Score from");
    const choice = element(line, "select");
    set.confusions.forEach(({ threshold }, i) =>
      element(choice, "option", { value: i }, threshold.toFixed(2) + (i ? "" : " (best F1)")));
    choice.addEventListener("change", () => {
      const cells = new Map(set.confusions[+choice.value].cells
        .map(([row, column, count, share]) => [`${row},${column}`, [count, share]]));
      for (const cell of find("td[data-cell]", matrix)) {
        const [count, share] = cells.get(cell.dataset.cell) ?? [0, 0];
        cell.textContent = count ? count.toLocaleString("en") : "";
        cell.style.setProperty("--share", share);
      }
    });
  }

  // ------------------------------------------------------------ the page

  document.documentElement.classList.add("alive");
  find("details.numbers").forEach((numbers) => { numbers.open = false; });
  find("[data-chart]").forEach((host) => chart(host)(read(host.dataset.chart)));
  find("[data-test-set]").forEach(testSet);
})();
