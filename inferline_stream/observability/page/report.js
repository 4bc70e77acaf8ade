// The report of a run: its charts, from the data inside the page. charts.js stands before this in the same script.
const SHOWN = { number, seconds, percent, dollars };
const given = JSON.parse(document.getElementById("charts").textContent);
const axis = ({ shows, digits, ...rest }) => ({ ...rest, format: (v) => SHOWN[shows](v, digits) });

function drawAll() {
  for (const [id, { x, y, ...rest }] of Object.entries(given)) chart(document.getElementById(id), { ...rest, x: axis(x), y: axis(y) });
}

addEventListener("resize", drawAll);
drawAll();
