"use strict";

// ---- plots -------------------------------------------------------------------------------------------------------
// The figures come as data. Here they get the page's colors ("@name" stands for the CSS variable --name), and their
// labels a place where they hide nothing, anew whenever the width or the color scheme changes.

const figures = JSON.parse(document.getElementById("figures").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";

function themed(value) {
  if (typeof value === "string") return value.startsWith("@") ? css(value.slice(1)) : value;
  if (Array.isArray(value)) return value.map(themed);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
  }
  return value;
}

function rightMargin(figure) {
  if (figure.line_ends) return 30 + Math.max(...figure.labels.map((label) => textWidth(label.text)));
  return figure.values ? 64 : 14;
}

function layoutOf(figure, element) {
  const axis = {
    gridcolor: css("grid"), linecolor: css("line"), zerolinecolor: css("line"), automargin: true,
    tickfont: { color: css("muted") }, title: { font: { color: css("muted"), size: 13 }, standoff: 8 },
  };
  const given = themed(figure.layout);
  const merged = (own = {}) => ({ ...axis, ...own, title: { ...axis.title, ...(own.title || {}) } });
  return {
    ...given,
    width: element.clientWidth, height: element.clientHeight, // given, so that a narrower window narrows the plot
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: FONT, size: 13, color: css("text") },
    margin: { l: 52, r: rightMargin(figure), t: 12, b: 48 },
    showlegend: false, hovermode: "closest", dragmode: false,
    hoverlabel: { bgcolor: css("card"), bordercolor: css("line"), font: { color: css("text"), family: FONT } },
    xaxis: { ...merged(given.xaxis), fixedrange: true },
    yaxis: { ...merged(given.yaxis), fixedrange: true },
    annotations: [],
  };
}

// Score texts at the end of a bar's interval.
function valueAnnotations(figure) {
  return (figure.values || []).map((value) => ({
    x: value.x, y: value.y, text: value.bold ? `<b>${value.text}</b>` : value.text, showarrow: false,
    xanchor: "left", xshift: 8, font: { color: css("text"), size: 13 },
  }));
}

const overlap = (a, b) =>
  Math.max(0, Math.min(a.x1, b.x1) - Math.max(a.x0, b.x0)) * Math.max(0, Math.min(a.y1, b.y1) - Math.max(a.y0, b.y0));

// Candidate places of a label's center around its point, near ones first.
function candidates(width, height) {
  const places = [];
  for (const ring of [0, 1, 2, 3, 4]) {
    const dx = width / 2 + 10 + 14 * ring, dy = height / 2 + 10 + 15 * ring;
    places.push([dx, 0], [-dx, 0], [0, -dy], [0, dy], [dx * 0.8, -dy], [-dx * 0.8, -dy], [dx * 0.8, dy], [-dx * 0.8, dy],
      [dx, -dy / 2], [-dx, -dy / 2], [dx, dy / 2], [-dx, dy / 2]);
  }
  return places;
}

function textWidth(text) {
  const context = textWidth.context || (textWidth.context = document.createElement("canvas").getContext("2d"));
  context.font = `600 13px ${FONT}`;
  const plain = text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  return context.measureText(plain).width + 4;
}

// Greedy: each label takes the candidate that overlaps least with markers, intervals, labels placed and the frame.
function labelAnnotations(figure, plot) {
  const { xaxis, yaxis } = plot._fullLayout;
  const inside = { x0: 0, y0: 0, x1: xaxis._length, y1: yaxis._length };
  const at = figure.labels.map((label) => ({ x: xaxis.type === "log" ? xaxis.l2p(label.x) : xaxis.d2p(label.x), y: yaxis.d2p(label.y) }));
  if (figure.line_ends) return endAnnotations(figure, at, inside);
  const markers = figure.traces.filter((trace) => trace.mode === "markers").flatMap((trace) => trace.x.map((x, i) => {
    const center = { x: xaxis.d2p(x), y: yaxis.d2p(trace.y[i]) };
    return { x0: center.x - 9, x1: center.x + 9, y0: center.y - 9, y1: center.y + 9 };
  }));
  const bars = [];
  for (const trace of figure.traces) {
    if (trace.mode === "lines") {
      const [x0, x1] = [xaxis.d2p(trace.x[0]), xaxis.d2p(trace.x[1])].sort((a, b) => a - b);
      bars.push({ x0, x1, y0: yaxis.d2p(trace.y[0]) - 3, y1: yaxis.d2p(trace.y[0]) + 3 });
    }
    if (!trace.error_y) continue;
    trace.y.forEach((y, i) => {
      const x = xaxis.d2p(trace.x[i]);
      bars.push({ x0: x - 2, x1: x + 2, y0: yaxis.d2p(y + trace.error_y.array[i]), y1: yaxis.d2p(y - trace.error_y.arrayminus[i]) });
    });
  }
  for (const shape of figure.layout.shapes || []) {
    const x = xaxis.d2p(shape.x0);
    bars.push({ x0: x - 2, x1: x + 2, y0: 0, y1: inside.y1 });
  }
  const placed = [];
  const order = figure.labels.map((_, i) => i).sort((i, j) => at[i].y - at[j].y || at[i].x - at[j].x);
  const result = [];
  for (const i of order) {
    const label = figure.labels[i], width = textWidth(label.text), height = 17;
    let best = null;
    candidates(width, height).forEach(([dx, dy], rank) => {
      const x = at[i].x + dx, y = at[i].y + dy;
      const box = { x0: x - width / 2, x1: x + width / 2, y0: y - height / 2, y1: y + height / 2 };
      const area = width * height;
      let cost = rank * 12 + 5 * (area - overlap(box, inside));
      for (const other of markers) cost += 4 * overlap(box, other);
      for (const other of placed) cost += 6 * overlap(box, other);
      for (const other of bars) cost += 2 * overlap(box, other);
      if (!best || cost < best.cost) best = { cost, box, dx, dy, far: rank >= 12 };
    });
    placed.push(best.box);
    result.push({ ...pointing(label, best.dx, best.dy), arrowcolor: best.far ? css("muted") : "rgba(0,0,0,0)" });
  }
  return result;
}

// Names at the ends of lines: one column at the right, pushed apart where ends lie close.
function endAnnotations(figure, at, inside) {
  const step = 17;
  const order = at.map((_, i) => i).sort((i, j) => at[i].y - at[j].y);
  const ys = order.map((i) => at[i].y);
  for (let k = 1; k < ys.length; k++) ys[k] = Math.max(ys[k], ys[k - 1] + step);
  const floor = inside.y1 - step / 2;
  for (let k = ys.length - 1; k >= 0; k--) ys[k] = Math.min(ys[k], floor - (ys.length - 1 - k) * step);
  const left = inside.x1 + 22;
  return order.map((i, k) => ({
    ...pointing(figure.labels[i], left - at[i].x, ys[k] - at[i].y), arrowcolor: figure.labels[i].color, standoff: 1,
    xanchor: "left",
  }));
}

// An annotation whose text stands (dx, dy) pixels from its point.
const pointing = (label, dx, dy) => ({
  x: label.x, y: label.y, text: label.text, showarrow: true, arrowhead: 0, arrowwidth: 1, standoff: 7, ax: dx, ay: dy,
  xanchor: "center", yanchor: "middle", borderpad: 0, font: { color: css("text"), size: 13, family: FONT },
});

async function draw(figure) {
  const element = document.getElementById("plot-" + figure.id);
  const layout = layoutOf(figure, element);
  await Plotly.react(element, themed(figure.traces), layout, { displayModeBar: false, responsive: false });
  const annotations = [...valueAnnotations(figure), ...labelAnnotations(figure, element)];
  if (annotations.length) await Plotly.relayout(element, { annotations });
}

const drawAll = () => Promise.all(figures.map(draw));
drawAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
const page = document.querySelector("main");
let pending, drawnWidth = page.clientWidth;
new ResizeObserver(() => {
  if (page.clientWidth === drawnWidth) return; // only the width matters, sorting and scrolling change others
  drawnWidth = page.clientWidth;
  clearTimeout(pending);
  pending = setTimeout(drawAll, 100);
}).observe(page);

// ---- sorting -----------------------------------------------------------------------------------------------------

const table = document.querySelector("table.methods");
table.querySelectorAll("thead button").forEach((button, column) => {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const first = column === 1 || column === 2 ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    table.querySelectorAll("thead th").forEach((cell) => cell.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (column === 0) return sign * key(a).localeCompare(key(b));
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // nothing measured stays last
      return sign * (Number(key(a)) - Number(key(b)));
    });
    table.tBodies[0].append(...rows);
  });
});
