"use strict";
// The script of report.html: theme, figures with linked steps, and the browser of responses.
// Text of models reaches the page through textContent alone, and plotly through `plain`.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const root = document.documentElement;
  const many = data.runs.length > 1;
  const touch = matchMedia("(pointer: coarse)").matches;

  const make = (tag, look, ...inside) => {
    const element = document.createElement(tag);
    if (look) element.className = look;
    element.append(...inside.filter((part) => part !== null && part !== undefined));
    return element;
  };

  // ---- theme: the system's, until the switch says otherwise

  const system = matchMedia("(prefers-color-scheme: dark)");
  const KEY = "polaris-report-theme";
  let chosen = null;
  try { chosen = localStorage.getItem(KEY); } catch { /* a file may have no storage */ }
  const isDark = () => (chosen ? chosen === "dark" : system.matches);
  const tone = (color) => (isDark() ? data.dark[color] ?? color : color);
  const probe = root.appendChild(make("i"));
  probe.hidden = true;
  const css = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const paintTheme = () => {
    root.style.colorScheme = isDark() ? "dark" : "light";
    root.dataset.theme = isDark() ? "dark" : "light";
    find("theme").textContent = isDark() ? "Light" : "Dark";
  };
  find("theme").hidden = false;
  find("theme").addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try { localStorage.setItem(KEY, chosen); } catch { /* likewise */ }
    paintTheme();
    plots.forEach(paint);
  });
  system.addEventListener("change", () => { paintTheme(); plots.forEach(paint); });

  // ---- figures

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
      const known = one.error
        ? one.error.map((e) => `%{y:${format}}` + (e === null ? "" : ` ± ${number(e, panel.unit)}`))
        : `%{y:${format}}`;
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
        return [{ ...trace, mode: "markers", hovertemplate: "here",
          marker: { color, size: 9, symbol: "x-thin", line: { width: 2, color } } }];
      }
      if (one.kind === "steps") {
        return [{ ...trace, mode: "lines", line: { ...trace.line, shape: "hvh" } }];
      }
      if (!one.smooth) return [{ ...trace, mode: "lines+markers" }];
      const dots = new Set(one.alone);
      const faint = { ...trace, mode: "lines+markers", opacity: 0.4,
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
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
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
      const heat = `${name}, T ${Number(stage.temperature.toPrecision(3))}`;
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

  // ---- the browser of responses

  const browser = (() => {
    const groups = data.responses;
    const place = find("browser");
    if (!place || !groups.length) return { goTo: () => {} };
    const PAGE = 6;
    let shown = PAGE;
    const option = (value, text) => {
      const element = make("option", "", text);
      element.value = value;
      return element;
    };
    const select = (label, ...options) => {
      const element = make("select", "", ...options);
      element.setAttribute("aria-label", label);
      return element;
    };
    const all = (name) => [...new Set(groups.map((group) => group[name]))];
    const run = select("run", option("", "all runs"),
      ...all("run").map((index) => option(String(index), data.runs[index].name)));
    run.hidden = !many;
    const step = select("step", option("", "all steps"),
      ...all("step").sort((a, b) => a - b).map((n) => option(String(n), `step ${n}`)));
    const outcome = select("outcome", option("", "right and wrong"), option("right", "right"),
      option("wrong", "wrong"));
    const tick = (text) => {
      const box = make("input");
      box.type = "checkbox";
      return [box, make("label", "", box, text)];
    };
    const [rescued, rescuedLabel] = tick("rescued");
    const [substituted, substitutedLabel] = tick("substituted");
    const [cut, cutLabel] = tick("cut by the budget");
    const [complete, completeLabel] = tick("complete groups");
    const search = make("input");
    search.type = "search";
    search.placeholder = "find text";
    search.setAttribute("aria-label", "find text");
    const count = make("p", "note");
    count.setAttribute("role", "status");
    const list = make("div");
    const more = make("button", "more", "Show more");
    more.type = "button";
    place.append(make("div", "filters", run, step, outcome, rescuedLabel, substitutedLabel,
      cutLabel, search, completeLabel), count, list, more);

    const ofResponse = (response) => {
      if (outcome.value === "right" && !response.right) return false;
      if (outcome.value === "wrong" && response.right) return false;
      if (cut.checked && !response.cut) return false;
      return true;
    };
    const ofGroup = (group) => {
      if (run.value && group.run !== Number(run.value)) return false;
      if (step.value && group.step !== Number(step.value)) return false;
      if (rescued.checked && !group.responses.some((one) => one.rescue)) return false;
      if (substituted.checked && !group.substituted) return false;
      const words = search.value.toLowerCase();
      if (words && ![group.question, group.gold, group.id, ...group.responses.map((r) => r.text)]
        .some((text) => text.toLowerCase().includes(words))) return false;
      return group.responses.some(ofResponse);
    };

    function show() {
      const fitting = groups.filter(ofGroup);
      const responses = fitting.reduce((sum, g) => sum + g.responses.filter(ofResponse).length, 0);
      count.textContent = `${responses} responses in ${fitting.length} of ${groups.length} `
        + "groups here fit.";
      list.replaceChildren(...fitting.slice(0, shown).map(card));
      more.hidden = fitting.length <= shown;
    }
    const anew = () => { shown = PAGE; show(); };
    [run, step, outcome, rescued, substituted, cut, complete].forEach((element) =>
      element.addEventListener("change", anew));
    search.addEventListener("input", anew);
    more.addEventListener("click", () => { shown += PAGE; show(); });

    function card(group) {
      const right = group.responses.filter((one) => one.right).length;
      const dots = make("span", "dots", ...group.responses.map((one) =>
        make("i", one.right ? "good" : "")));
      const marks = [
        group.responses.some((one) => one.rescue) && ["info", "rescued"],
        group.substituted && ["info", "substituted: another group was trained in its place"],
        group.attempt > 0 && ["info", `batch ${group.attempt + 1} of its step`],
      ].filter(Boolean).map(([look, text]) => make("span", `chip ${look}`, text));
      const gold = make("div", "", make("span", "tag", "gold answer"),
        make("span", "text", group.gold));
      const chosen = complete.checked ? group.responses : group.responses.filter(ofResponse);
      const hidden = group.responses.length - chosen.length + group.left_out;
      const name = many ? `${data.runs[group.run].name}, step ${group.step}` : `step ${group.step}`;
      return make("article", "group",
        make("header", "", make("b", "", name), dots,
          make("span", "", `${right} of ${group.responses.length} right`), ...marks,
          make("span", "id", group.id)),
        make("div", "ask", make("div", "", make("span", "tag", "question"),
          make("div", "text", group.question)), gold),
        make("div", "side", ...chosen.map(column)),
        hidden ? make("p", "note", `${hidden} more responses of this group are not shown.`) : null);
    }

    function column(one) {
      const reward = one.reward === null ? "no reward" : `reward ${one.reward}`;
      const facts = make("p", "facts", make("b", "", reward),
        one.tokens === null ? null : `${one.tokens.toLocaleString("en")} tokens`,
        one.cut ? make("span", "chip bad", "cut by the budget") : null);
      const answer = make("p", `answer ${one.right ? "good" : "bad"}`,
        make("b", "mark", one.right ? "✓ " : "✗ "),
        one.answer === null ? "no extracted answer" : "answer ",
        one.answer === null ? null : make("span", "text", one.answer),
        one.reason ? make("span", "", ` (${one.reason})`) : null);
      const rescue = one.rescue ? make("details", "", make("summary", "",
        `trained in its place: a response of step ${one.rescue.step}`),
        make("pre", "text", one.rescue.text)) : null;
      return make("section", `response ${one.right ? "good" : ""}`, facts, answer,
        make("pre", "text", one.text), rescue);
    }

    show();
    return {
      goTo: (wanted) => {
        const near = [...step.options].slice(1).map((o) => Number(o.value))
          .reduce((best, n) => (Math.abs(n - wanted) < Math.abs(best - wanted) ? n : best));
        step.value = String(near);
        anew();
        find("responses").scrollIntoView({ behavior: "smooth" });
      },
    };
  })();

  paintTheme();
  drawFigures().catch((error) => {
    root.dataset.figures = "failed";
    document.querySelectorAll(".panels").forEach((place) => place.replaceChildren(make("p",
      "failed", `This browser cannot draw the figure (${error.message}); figures/ has it as PNG.`)));
  });
})();
