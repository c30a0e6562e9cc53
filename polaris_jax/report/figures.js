// The figures of report.html, which plotly.js draws; those over steps are linked.

const plots = [];
const hiddenRuns = new Set();
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const FORMATS = { share: ".1%", tokens: ",.5~r", count: ",d", number: ".4~g" };
// plotly reads some tags in texts; none of ours is one.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const labelsOf = (panel) => [...new Set(panel.series.map((one) => one.label))];

function traces({ panel, off }) {
  const labels = labelsOf(panel);
  const format = FORMATS[panel.unit];
  return panel.series.flatMap((one) => {
    const color = tone(one.color);
    const run = data.runs[one.run].name;
    const name = !many ? one.label || panel.label : labels.length > 1 && one.label
      ? `${run}: ${one.label}` : run;
    const dash = many ? DASHES[labels.indexOf(one.label) % DASHES.length]
      : one.dashed ? "dot" : "solid";
    // plotly shows the nearest value. If a step may have none, the value names its own step.
    const sparse = panel.across === "step" && (one.kind === "points"
      || one.y.some((y, i) => y === null && one.x[i] >= 0) || one.x.at(-1) + 0.5 < wholeRange[1]);
    const suffix = sparse ? " (step %{x})" : "";
    const known = one.error
      ? one.error.map((e) => `%{y:${format}}` + (e === null ? "" : ` ± ${number(e, panel.unit)}`))
      : `%{y:${format}}${suffix}`;
    const trace = {
      x: one.x, y: one.y, name: plain(name), hovertemplate: known,
      visible: !off.has(one.label) && !hiddenRuns.has(one.run), meta: one.run,
      line: { color, width: one.dashed ? 1.4 : 2, dash }, marker: { color, size: 5 },
    };
    if (one.error) {
      trace.error_y = { type: "data", array: one.error, color: css("--quiet"), thickness: 1.2,
        width: 3 };
    }
    if (one.kind === "bars" || one.kind === "stack") {
      return [{ ...trace, type: "bar", line: undefined, marker: { color, line: { width: 0 } } }];
    }
    if (one.kind === "points") {
      return [{ ...trace, mode: "markers", marker: { color, size: 9, symbol: "diamond",
        line: { width: 1, color: css("--card") } } }];
    }
    if (one.kind === "marks") {
      return [{ ...trace, mode: "markers", hovertemplate: "step %{x}",
        marker: { color, size: 9, symbol: "x-thin", line: { width: 2, color } } }];
    }
    if (one.kind === "steps") {
      return [{ ...trace, mode: "lines", line: { ...trace.line, shape: "hvh" } }];
    }
    if (!one.smooth) return [{ ...trace, mode: "lines+markers" }];
    const dots = new Set(one.alone);
    const faint = { ...trace, mode: "lines+markers", opacity: many ? 0.2 : 0.4,
      // The sample beside the name is as faint as the line.
      hovertemplate: `<span style="color: ${color}">●</span> ${known}`,
      line: { ...trace.line, width: 1 },
      marker: { color, size: one.y.map((_, i) => (dots.has(i) ? 5 : 0)) } };
    const smooth = { ...trace, ...one.smooth, mode: "lines", hoverinfo: "skip",
      hovertemplate: undefined };
    return [faint, smooth];
  });
}

function number(value, unit) {
  if (unit === "share") return `${(100 * value).toFixed(1)}%`;
  return String(Number(value.toPrecision(3)));
}

const stepPanels = data.charts.flatMap((chart) => chart.panels)
  .filter((panel) => panel.across === "step");
const steps = stepPanels.flatMap((panel) => panel.series.flatMap((one) => one.x));
const ends = steps.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)],
  [Infinity, -Infinity]);
const wholeRange = [ends[0] - 0.5, ends[1] + 0.5];

const narrow = (panel) => panel.across === "category" && panel.series[0].x.length < 3;

function layout({ div, panel, chart, first, last }) {
  const [ink, quiet, grid] = [css("--ink"), css("--quiet"), css("--grid")];
  const over = panel.across === "step";
  const shapes = [];
  const annotations = [];
  const text = (value, x, look) => annotations.push({ text: plain(value), x, y: 1,
    yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 11, color: quiet },
    ...look });
  if (over) stageMarks(chart, first ? div.clientWidth - 58 : 0, shapes, text);
  panel.bands.forEach(([from, to, , color]) => {
    shapes.push({ type: "rect", x0: from, x1: to, y0: 0, y1: 1, yref: "paper", layer: "below",
      line: { width: 0 }, fillcolor: color ? tone(color) : grid });
  });
  panel.expected.filter((one) => one.runs.some((run) => !hiddenRuns.has(run))).forEach((one) => {
    shapes.push({ type: "rect", x0: one.x[0], x1: one.x[1], y0: one.y[0], y1: one.y[1],
      layer: "below", line: { width: 0 }, fillcolor: tone(one.color), opacity: 0.16 });
  });
  if (panel.mark) {
    shapes.push({ type: "line", x0: panel.mark[0], x1: panel.mark[0], y0: 0, y1: 1,
      yref: "paper", line: { color: ink, width: 1.2, dash: "dash" } });
    text(panel.mark[1], panel.mark[0], { xanchor: "left", y: 0.02, xshift: 3,
      font: { size: 11, color: ink } });
  }
  const axis = { gridcolor: grid, zeroline: false, linecolor: grid, automargin: false,
    tickfont: { size: 11, color: quiet }, fixedrange: touch };
  return {
    autosize: true, showlegend: false, hovermode: "x unified",
    margin: { l: 50, r: 8, t: first && over ? 20 : 8, b: last ? 40 : 22 },
    paper_bgcolor: css("--card"), plot_bgcolor: css("--card"),
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: quiet },
    hoverlabel: { bgcolor: css("--raised"), bordercolor: grid, font: { color: ink, size: 12 } },
    dragmode: touch ? false : "zoom", barmode:
      panel.series.some((one) => one.kind === "stack") ? "stack" : over ? "overlay" : "group",
    bargap: over ? 0.1 : narrow(panel) ? 0.6 : 0.25, shapes, annotations,
    xaxis: { ...axis, ...across(panel), title: last ? { text: plain(panel.x_label),
      font: { size: 11 }, standoff: 4 } : undefined, showspikes: over, spikemode: "across",
      spikethickness: 1, spikecolor: quiet, spikedash: "solid", spikesnap: "hovered data" },
    yaxis: { ...axis, ...upwards(panel), fixedrange: true },
  };
}

function stageMarks(chart, width, shapes, text) {
  const [stages] = chart.stages;
  const alike = (names) => chart.stages.every((other) =>
    JSON.stringify(other, names) === JSON.stringify(stages, names));
  if (!stages || !alike(["first"])) return; // runs whose borders lie elsewhere
  const detailed = alike(["first", "temperature", "tokens"]);
  stages.forEach((stage, index) => {
    const from = stage.first - 0.5;
    const to = index + 1 < stages.length ? stages[index + 1].first - 0.5 : wholeRange[1];
    if (index % 2) {
      shapes.push({ type: "rect", x0: from, x1: to, y0: 0, y1: 1, yref: "paper",
        layer: "below", line: { width: 0 }, fillcolor: css("--shade") });
    }
    if (index) {
      shapes.push({ type: "line", x0: from, x1: from, y0: 0, y1: 1, yref: "paper",
        line: { color: css("--quiet"), width: 1, dash: "dash" } });
    }
    // As much as there is room for.
    const room = width * (to - from) / (wholeRange[1] - wholeRange[0]);
    const name = `stage ${stage.stage}`;
    const heat = `${name}, T ${stage.temperature === null ? "unknown"
      : Number(stage.temperature.toPrecision(3))}`;
    const tokens = `${heat}, ${stage.tokens.toLocaleString("en")} tokens`;
    const said = !detailed && room > 60 ? name : room > 200 ? tokens : room > 100 ? heat
      : room > 15 ? `${stage.stage}` : "";
    if (said) text(said, Math.max(from, wholeRange[0]), { xanchor: "left", xshift: 2 });
  });
}

function across(panel) {
  if (panel.across === "step") {
    return { range: [...wholeRange], tickformat: ",d", nticks: 7, hoverformat: ",d",
      unifiedhovertitle: { text: "step %{x}" } };
  }
  if (panel.across === "category") return { type: "category", tickangle: 0, showgrid: false };
  if (panel.across === "number") return { type: "linear", nticks: 8 };
  const all = [...new Set(panel.series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const least = Math.max(1.3, (all.at(-1) / all[0]) ** (1 / 6));
  const shown = all.reduceRight((kept, x) =>
    (kept.length && kept[0] / x < least ? kept : [x, ...kept]), []);
  return { type: "log", tickvals: shown, ticktext: shown.map((x) => x.toLocaleString("en")) };
}

function upwards(panel) {
  const look = { nticks: 5 };
  if (panel.span) look.range = [...panel.span];
  if (panel.axis === "log") {
    Object.assign(look, { type: "log", exponentformat: "power", dtick: 1 });
  }
  if (panel.unit === "share") look.tickformat = panel.span && panel.span[1] < 0.2 ? ".1%" : ".0%";
  if (panel.unit === "tokens") look.tickformat = "~s";
  if (panel.unit === "count") look.tickformat = ",d";
  return look;
}

const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset",
  showTips: false, showLink: false };
const paint = (plot) => Plotly.react(plot.div, traces(plot), layout(plot), CONFIG);

function swatch(one) {
  const [svg, line] = ["svg", "line"].map(
    (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("viewBox", "0 0 22 10");
  for (const [name, value] of Object.entries({ x1: 1, x2: 21, y1: 5, y2: 5 })) {
    line.setAttribute(name, value);
  }
  const dash = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3" };
  line.setAttribute("stroke-dasharray", dash[one.dash]);
  line.setAttribute("stroke-width", one.thick ? 8 : 2.5);
  if (one.kind === "points") { // a diamond
    line.setAttribute("x1", 7);
    line.setAttribute("x2", 15);
    line.setAttribute("stroke-width", 8);
    line.setAttribute("transform", "rotate(45 11 5)");
  }
  line.style.stroke = many ? "var(--quiet)"
    : `light-dark(${one.color}, ${data.dark[one.color] ?? one.color})`;
  svg.append(line);
  return svg;
}

function keys(plot) {
  const labels = labelsOf(plot.panel).filter((label) => label);
  const box = make("span", "keys");
  for (const [, , name, color] of plot.first ? plot.panel.bands : []) {
    const square = make("i");
    square.style.setProperty("--c", `light-dark(${color}, ${data.dark[color] ?? color})`);
    box.append(make("span", "band", square, name));
  }
  if (plot.panel.expected.length) {
    const { name, color } = plot.panel.expected[0];
    const square = make("i", "faint");
    square.style.setProperty("--c", many ? "var(--quiet)"
      : `light-dark(${color}, ${data.dark[color] ?? color})`);
    box.append(make("span", "band", square, name));
  }
  if (labels.length < 2) return box;
  labels.forEach((label, index) => {
    const one = plot.panel.series.find((series) => series.label === label);
    const thick = one.kind === "bars" || one.kind === "stack";
    const dash = many ? DASHES[index % DASHES.length] : one.dashed ? "dot" : "solid";
    const button = make("button", "", swatch({ ...one, dash, thick }), label);
    button.type = "button";
    const show = () => button.setAttribute("aria-pressed", String(!plot.off.has(label)));
    button.addEventListener("click", () => {
      plot.off.has(label) ? plot.off.delete(label) : plot.off.add(label);
      show();
      paint(plot);
    });
    show();
    box.append(button);
  });
  return box;
}

let asked = null; // the step under the pointer, until the next frame shows it everywhere
function link(plot) {
  plot.div.on("plotly_hover", (event) => {
    if (plot.panel.across !== "step" || !event.points.length) return;
    const step = event.points[0].x;
    if (asked === null) requestAnimationFrame(() => { showStep(asked.step, asked.from); });
    asked = { step, from: plot };
  });
  plot.div.on("plotly_unhover", () => others(plot).forEach((other) =>
    Plotly.Fx.unhover(other.div)));
  plot.div.on("plotly_relayout", (event) => {
    if (plot.panel.across !== "step" || plot.following) return;
    if (!Object.keys(event).some((key) => key.startsWith("xaxis"))) return;
    const range = [...plot.div.layout.xaxis.range];
    others(plot).forEach((other) => {
      other.following = true;
      Plotly.relayout(other.div, { "xaxis.range": [...range] })
        .then(() => { other.following = false; });
    });
  });
  plot.div.on("plotly_click", (event) => {
    if (plot.panel.across === "step" && event.points.length) browser.goTo(event.points[0].x);
  });
}
const others = (plot) => plots.filter((other) =>
  other !== plot && other.panel.across === "step");
function showStep(step, from) {
  asked = null;
  others(from).forEach((other) => {
    const place = other.div.getBoundingClientRect();
    if (place.bottom < 0 || place.top > innerHeight) return;
    Plotly.Fx.hover(other.div, { xval: step }, "xy", true);
  });
}

async function drawFigures() {
  const packed = Uint8Array.from(atob(find("library").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const chart of data.charts) {
    const place = find(chart.name).querySelector(".panels");
    chart.panels.forEach((panel, index) => {
      const alone = panel.across !== "step";
      const last = index === chart.panels.length - 1 || alone;
      const div = make("div", last ? "plot tall" : "plot");
      const off = new Set(many ? panel.series.filter((one) => one.minor)
        .map((one) => one.label) : []);
      const plot = { div, panel, chart, off, first: index === 0, last, following: false };
      place.append(make("div", "panel",
        make("div", "head", make("span", "axis", panel.label), keys(plot)), div));
      plots.push(plot);
    });
  }
  for (const plot of plots) {
    await Plotly.newPlot(plot.div, traces(plot), layout(plot), CONFIG);
    link(plot);
  }
  root.dataset.figures = "ready";
}

document.querySelectorAll(".runs button").forEach((button) => {
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run);
    hiddenRuns.has(run) ? hiddenRuns.delete(run) : hiddenRuns.add(run);
    button.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
    plots.forEach(paint);
  });
});
