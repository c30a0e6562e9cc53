// The browser of responses of report.html: filters, groups side by side.

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
      group.substituted && ["info", group.donor === null ? "substituted by another group (inferred)"
        : `substituted by ${group.donor}`],
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

// ---- all is defined: begin

paintTheme();
drawFigures().catch((error) => {
  root.dataset.figures = "failed";
  document.querySelectorAll(".panels").forEach((place) => place.replaceChildren(make("p",
    "failed", `This browser cannot draw the figure (${error.message}); figures/ has it as PNG.`)));
});
