// Draws each table[data-chart] above itself, with uPlot. The table is the data.
"use strict";
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (index) => css(`--s${(index % 7) + 1}`);
  const number = (value) =>
    value == null ? "–" : Math.abs(value) >= 1000 || Number.isInteger(value)
      ? Math.round(value).toLocaleString("en")
      : value.toLocaleString("en", { maximumSignificantDigits: 3 });
  const said = (unit) => (value) =>
    value == null ? "–" : unit === "$" ? `$${number(value)}` : unit ? `${number(value)} ${unit}` : number(value);

  function read(table) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const rows = [...table.tBodies[0].rows].map((row) => [...row.cells]);
    const value = (cell) => (cell.dataset.v === undefined ? null : Number(cell.dataset.v));
    const columns = names.map((_, index) => rows.map((cells) => value(cells[index])));
    const texts = rows.map((cells) => cells[cells.length - 1].textContent);
    const drawn = columns.map((column, index) => index === 0 || column.some((v) => v !== null));
    return { names: names.filter((_, i) => drawn[i]), columns: columns.filter((_, i) => drawn[i]), texts };
  }

  function axes(unit, timed, daily, kind, label) {
    const line = { stroke: css("--line"), width: 1 };
    const look = { stroke: css("--dim"), grid: line, ticks: line, font: "12px system-ui, sans-serif" };
    const values = (_, splits) => splits.map((value) => (value == null ? "" : timed || kind === "xy" ? said(unit)(value) : number(value)));
    const below = kind === "xy" ? { values: (_, splits) => splits.map((v) => (v == null ? "" : number(v))), label, labelSize: 22, labelFont: look.font, space: 46 } : timed ? { values: moments, space: 78, ...(daily ? { incrs: [1, 2, 3, 7, 14, 28].map((d) => d * 86400) } : {}) } : { values: (_, splits) => splits.map((v) => `$${number(v)}`) };
    const widest = (said) => Math.max(...(said ?? []).map((text) => text.length), 5);
    return [{ ...look, ...below }, { ...look, values, size: (_, said) => 18 + 7 * widest(said) }];
  }

  // Ticks as the reader's language writes them: the day where one begins, else the time.
  const moment = (at, daily) => new Date(at * 1000).toLocaleString(undefined,
    daily ? { month: "short", day: "numeric" } : { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  function moments(_, splits, __, space, step) {
    const day = { month: "short", day: "numeric" }, time = { hour: "2-digit", minute: "2-digit" };
    return splits.map((at) => {
      const moment = new Date(at * 1000), midnight = moment.getHours() === 0 && moment.getMinutes() === 0;
      return moment.toLocaleString(undefined, step >= 86400 || midnight ? day : time);
    });
  }

  function stacked(columns) {
    const sums = columns[0].map(() => 0);
    return columns.slice(1).map((column) => column.map((v, i) => (sums[i] += v ?? 0))).reverse();
  }

  function optionsOf(kind, unit, log, data, width) {
    const timed = kind === "stack" || kind === "lines", daily = data.names[0] === "Day";
    const bars = uPlot.paths.bars({ size: [0.8, 48] });
    const count = data.columns.length - 1;
    const series = data.names.slice(1).map((label, place) => {
      const index = kind === "stack" ? count - 1 - place : place;
      const stroke = colour(index);
      const name = kind === "stack" ? data.names[count - place] : label;
      const raw = data.columns[kind === "stack" ? count - place : place + 1];
      const value = (_, v, __, at) => (at == null ? "" : said(unit)(raw[at]));
      if (kind === "stack") return { label: name, fill: stroke, width: 0, paths: bars, points: { show: false }, value };
      if (kind === "curve") {
        const line = name === "Best mix" ? { width: 2, spanGaps: true } : { paths: () => null };
        return { label: name, stroke, ...line, points: { show: true, size: place ? 9 : 4, fill: stroke }, value };
      }
      return { label: name, stroke, width: 2, spanGaps: kind === "xy", points: { show: data.columns[0].length < 40, size: 5 }, value };
    });
    const first = { label: "", value: (_, v) => (v == null ? "" : timed ? moment(v, daily) : kind === "xy" ? `${number(v)} ${data.names[0]}` : `$${number(v)} per 1,000`) };
    const plane = { x: { time: false, distr: log === "xy" ? 3 : 1 }, y: { distr: log ? 3 : 1 } };
    return {
      width, height: 240, padding: [12, 24, 0, 4],
      scales: kind === "xy" ? plane : { x: { time: timed, ...(timed ? { range: roomy(data.columns[0], kind) } : { range: (_, lo, hi) => [Math.min(0, lo), (hi || 1) * 1.08] }) },
                y: { range: (_, lo, hi) => (kind === "curve" ? padded(lo, hi) : [0, (hi || 1) * 1.05]) } },
      axes: axes(unit, timed, daily, kind, data.names[0]), series: [first, ...series],
      cursor: { y: false, drag: { x: false, y: false } },
      hooks: kind === "curve" ? { draw: [(u) => label(u, data)] } : {},
    };
  }
  // Bars stand on their moments: half a step of room on both sides shows the outer ones whole.
  const roomy = (moments, kind) => (_, lo, hi) => {
    const half = moments.length > 1 ? (moments[1] - moments[0]) / 2 : 1800;
    return kind === "stack" ? [lo - half, hi + half] : [lo, hi];
  };
  const padded = (lo, hi) => [Math.max(0, lo - (hi - lo) * 0.15 - 0.01), Math.min(1, hi + (hi - lo) * 0.15 + 0.01)];

  function label(u, data) {
    u.ctx.save();
    u.ctx.fillStyle = css("--ink");
    u.ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    for (let place = 2; place < data.columns.length; place++)
      data.columns[place].forEach((y, i) => {
        if (y === null) return;
        const x = u.valToPos(data.columns[0][i], "x", true), right = x > u.bbox.left + u.bbox.width * 0.7;
        u.ctx.textAlign = right ? "right" : "left";
        u.ctx.fillText(data.texts[i], x + (right ? -9 : 9) * devicePixelRatio, u.valToPos(y, "y", true) + (place === 3 ? 16 : -7) * devicePixelRatio);
      });
    u.ctx.restore();
  }

  function keep(place, make) {
    let chart;
    const draw = () => {
      chart?.destroy();
      chart = make(Math.max(place.clientWidth, 200));
    };
    draw();
    new ResizeObserver(() => chart.setSize({ width: Math.max(place.clientWidth, 200), height: chart.height })).observe(place);
    dark.addEventListener("change", draw);
    return () => chart;
  }

  for (const table of document.querySelectorAll("table[data-chart]")) {
    const kind = table.dataset.chart;
    if (kind === "bars") continue;
    const place = table.closest("figure").querySelector(".plot");
    const data = read(table);
    const values = kind === "stack" ? [data.columns[0], ...stacked(data.columns)] : data.columns;
    keep(place, (width) => new uPlot(optionsOf(kind, table.dataset.unit, table.dataset.log, data, width), values, place));
  }

  const live = document.getElementById("live-chart");
  if (live) {
    const place = live.querySelector(".plot"), state = document.getElementById("live-state");
    const kept = [[], [], [], []];
    const empty = () => [[Date.now() / 1000 - 300, Date.now() / 1000], [null, null], [null, null], [null, null]];
    const line = (name, index, scale) => ({ label: name, stroke: colour(index), width: 2, scale, points: { show: false }, value: (_, v) => (v == null ? "" : number(v)) });
    const current = keep(place, (width) => {
      const [below, left] = axes("", true);
      const right = { ...left, scale: "tokens", side: 1, grid: { show: false } };
      const scale = { range: (_, lo, hi) => [0, Math.max(hi || 0, 1) * 1.1] };
      return new uPlot({ width, height: 240, padding: [12, 4, 0, 4], axes: [below, left, right], cursor: { y: false, drag: { x: false } },
        scales: { x: { time: true, range: () => [Date.now() / 1000 - 300, Date.now() / 1000] }, y: scale, tokens: scale },
        series: [{ label: "", value: () => "" }, line("requests/s", 0, "y"), line("tokens/s", 1, "tokens"), line("in flight", 2, "y")] },
        kept[0].length ? kept : empty(), place);
    });
    document.addEventListener("live", ({ detail }) => {
      const points = detail.points || (detail.point ? [detail.point] : []);
      if (detail.points) kept.forEach((column) => (column.length = 0));
      for (const point of points) point.forEach((value, index) => kept[index].push(value));
      for (const column of kept) if (column.length > 150) column.shift();
      const last = kept[0].length - 1;
      if (last < 0) return;
      current().setData(kept);
      state.textContent = `${number(kept[1][last])} requests/s, ${number(kept[2][last])} tokens/s, ${kept[3][last]} in flight.`;
    });
  }
})();
