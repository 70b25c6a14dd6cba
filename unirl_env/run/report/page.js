"use strict";
for (const figure of document.querySelectorAll("[data-chart]")) {
  const { across, names, rows } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  if (!rows.length || !cursor) continue;
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const row = rows.reduce((a, b) => (Math.abs(b[1] - x) < Math.abs(a[1] - x) ? b : a));
    cursor.setAttribute("x1", row[1]);
    cursor.setAttribute("x2", row[1]);
    const lines = names.map((name, i) => (row[i + 2] == null ? null : `${name} ${row[i + 2]}`));
    readout.textContent = [`${across} ${row[0]}`, ...lines.filter((line) => line)].join("\n");
    cursor.style.visibility = readout.style.visibility = "visible";
  };
  const hide = () => { cursor.style.visibility = readout.style.visibility = "hidden"; };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
