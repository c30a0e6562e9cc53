// The script of report.html: page.js, figures.js and responses.js, which page.py joins. Here: the
// data of the page, how elements are made, and the theme.
//
// Text of models becomes visible through textContent alone, and in figures through `plain`.

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
