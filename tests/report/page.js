// What a reader does on the page of a report, with what it then shows. A test runs this in a browser.
function act(view) {
  const page = view.document, seen = {errors: []};
  view.addEventListener("error", event => seen.errors.push(event.message));
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const figure = page.getElementById("runs_cartpole"), svg = figure.querySelector("svg");
  const told = () => figure.querySelector("output").textContent, runs = () => figure.querySelectorAll("path.run").length;
  const buttons = [...figure.querySelectorAll("li button")];
  seen.buttons = buttons.map(one => one.textContent);
  seen.hint = told();

  // The highest point of all is the end of one run.
  const ends = [...svg.querySelectorAll("path.run")].map(one => one.getPointAtLength(one.getTotalLength()));
  const top = ends.reduce((a, b) => b.y < a.y ? b : a).matrixTransform(svg.getScreenCTM());
  const point = (x, y) => svg.dispatchEvent(new view.PointerEvent("pointermove", {clientX: x, clientY: y, bubbles: true}));
  point(top.x - 1, top.y + 1);
  seen.hovered = told();
  seen.chosen = svg.querySelectorAll(".chosen").length;
  point(top.x - 1, top.y - 80);
  seen.away = told();
  svg.focus();
  seen.focused = page.activeElement === svg;
  const press = key => svg.dispatchEvent(new view.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  press("ArrowRight");
  seen.first = told();
  press("ArrowRight");
  seen.second = told();
  press("ArrowLeft");
  press("ArrowLeft");
  seen.last = told();

  seen.runs = [runs()];
  buttons[0].click();
  seen.runs.push(runs());
  seen.pressed = buttons[0].getAttribute("aria-pressed");
  buttons[0].click();
  seen.runs.push(runs());

  const table = page.getElementById("scores_cartpole"), head = table.tHead.rows[0].cells[2], button = head.querySelector("button");
  const order = () => [head.getAttribute("aria-sort"), ...[...table.tBodies[0].rows].map(row => row.cells[0].textContent)];
  seen.orders = [order()];
  for (let click = 0; click < 3; click++) { button.click(); seen.orders.push(order()); }
  const p = page.getElementById("comparison_all_environments"), column = p.tHead.rows[0].cells[4].querySelector("button");
  column.click();
  seen.byP = [...p.tBodies[0].rows].map(row => row.cells[4].textContent);
  seen.clipped = [...page.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth + 1).map(
    one => one.querySelector("table").id || one.textContent.trim().slice(0, 40));
  seen.unreachable = [...page.querySelectorAll(".scroll")].filter(one => view.getComputedStyle(one).overflowX !== "auto").length;
  seen.outside = [...page.querySelectorAll(".explore svg text, .explore button")].filter(
    one => one.getBoundingClientRect().right > page.documentElement.clientWidth + 1).length;
  return seen;
}
