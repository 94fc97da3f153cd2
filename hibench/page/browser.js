"use strict";
// The browser of samples: methods x (resolutions | settings | seeds), one view for all pictures, difference to another method.
(() => {
  const items = JSON.parse(document.getElementById("samples-data").textContent).items;
  const home = document.getElementById("browser");
  if (!home || !items.length) return;
  const grid = document.getElementById("browser-grid"), controls = document.getElementById("browser-controls");
  const unique = (values) => [...new Set(values)];
  const best = (a, b) => b.rank[0] - a.rank[0] || b.rank[1] - a.rank[1];
  const methods = unique(items.map((item) => item.method)), resolutions = unique(items.map((item) => item.resolution));
  const settings = unique([...items].sort(best).map((item) => item.setting));
  const seeds = unique(items.flatMap((item) => Object.keys(item.seeds))).sort((a, b) => a - b);
  const state = { columns: "resolution", method: new Set(methods.slice(0, 6)), resolution: resolutions[resolutions.length - 1],
    setting: "", seed: seeds[0], against: "", gain: 4, pane: 224, x: 0.5, y: 0.5, zoom: 1, native: 0 };

  function find(method, resolution, setting) {
    const mine = items.filter((item) => item.method === method && item.resolution === resolution).sort(best);
    return mine.find((item) => item.setting === setting) || (setting && mine.length > 1 && !mine[0].role ? null : mine[0]);
  }
  const heads = () => ({ resolution: resolutions, setting: settings, seed: seeds })[state.columns];
  const chosen = (head) => ({ resolution: state.resolution, setting: state.setting, seed: state.seed, [state.columns]: head });
  const address = (method, place) => (find(method, place.resolution, place.setting) || { seeds: {} }).seeds[place.seed];

  function pane(method, head) {
    const place = chosen(head), item = find(method, place.resolution, place.setting), source = address(method, place);
    const figure = document.createElement("figure"), view = document.createElement("div");
    figure.className = "pane";
    view.className = "view";
    figure.append(view);
    if (!source) {
      figure.innerHTML = "<p>no sample</p>";
      return figure;
    }
    const other = state.against && address(state.against, { ...place, setting: "" });
    const said = `${method}, ${item.resolution}, ${item.setting}, seed ${place.seed}`;
    const add = (from, name, text) => {
      const image = new Image();
      image.className = name;
      image.alt = text;
      image.dataset.width = item.width;
      image.dataset.height = item.height;
      image.src = from;
      view.append(image);
    };
    add(source, "own", state.against ? `${said}, difference to ${state.against}${other ? "" : ": no picture of it"}` : said);
    if (other) {
      add(other, "other", "");
      figure.classList.add("difference");
      view.style.filter = `brightness(${state.gain})`;
    }
    figure.title = said;
    return figure;
  }

  function fill() {
    const table = document.createElement("table"), top = table.createTHead().insertRow();
    const cell = (text, scope) => {
      const made = document.createElement("th");
      made.scope = scope;
      made.textContent = text;
      return made;
    };
    top.append(cell("Method", "col"), ...heads().map((head) => cell(state.columns === "seed" ? `seed ${head}` : head, "col")));
    const body = table.createTBody();
    for (const method of methods.filter((one) => state.method.has(one))) {
      const row = body.insertRow();
      row.append(cell(method, "row"));
      for (const head of heads()) row.insertCell().append(pane(method, head));
    }
    grid.style.setProperty("--pane", `${state.pane}px`);
    grid.replaceChildren(table);
    for (const name of ["resolution", "setting", "seed"]) document.getElementById(`pick-${name}`).disabled = state.columns === name;
    place();
  }

  const scale = (image) => (state.native ? state.native / devicePixelRatio
    : state.zoom * state.pane / Math.max(image.dataset.width, image.dataset.height));

  function place() {
    for (const image of grid.querySelectorAll("img")) {
      const s = scale(image), side = { x: image.dataset.width * s, y: image.dataset.height * s };
      const corner = (axis) => {
        const half = state.pane / 2 / side[axis];
        const centre = side[axis] <= state.pane ? 0.5 : Math.min(Math.max(state[axis], half), 1 - half);
        return Math.round(state.pane / 2 - centre * side[axis]);
      };
      Object.assign(image.style, { width: `${side.x}px`, height: `${side.y}px`, left: `${corner("x")}px`, top: `${corner("y")}px`,
        imageRendering: s * devicePixelRatio >= 1 ? "pixelated" : "auto" });
    }
    document.getElementById("zoom-said").textContent = state.native ? `${state.native} screen pixel${state.native > 1 ? "s" : ""} per pixel`
      : `${state.zoom.toFixed(state.zoom % 1 ? 1 : 0)} × fit`;
    document.getElementById("zoom-native").setAttribute("aria-pressed", String(state.native > 0));
  }

  const within = (value) => Math.min(1, Math.max(0, value));
  function zoom(how) {
    if (how === "fit") Object.assign(state, { zoom: 1, native: 0, x: 0.5, y: 0.5 });
    else if (how === "native") state.native = 1;
    else if (state.native) state.native = Math.min(16, Math.max(1, how > 0 ? state.native * 2 : state.native / 2));
    else state.zoom = Math.min(32, Math.max(1, state.zoom * (how > 0 ? 1.5 : 1 / 1.5)));
    place();
  }
  function move(dx, dy) {                               // by a fraction of what is seen
    const image = grid.querySelector("img");
    if (!image) return;
    const s = scale(image);
    state.x = within(state.x + dx * state.pane / (image.dataset.width * s));
    state.y = within(state.y + dy * state.pane / (image.dataset.height * s));
    place();
  }

  function menu(name, label, values, selected, changed) {
    const made = document.createElement("label"), select = document.createElement("select");
    select.id = `pick-${name}`;
    for (const [value, text] of values) select.add(new Option(text, value, false, value === selected));
    select.addEventListener("change", () => { changed(select.value); fill(); });
    made.append(`${label} `, select);
    controls.append(made);
  }
  const same = (values) => values.map((value) => [value, value]);
  menu("columns", "Columns", [["resolution", "resolutions"], ["setting", "settings"], ["seed", "seeds"]], state.columns, (v) => { state.columns = v; });
  menu("resolution", "Resolution", same(resolutions), state.resolution, (v) => { state.resolution = v; });
  menu("setting", "Setting", [["", "most steps"], ...same(settings)], "", (v) => { state.setting = v; });
  menu("seed", "Seed", same(seeds), state.seed, (v) => { state.seed = v; });
  menu("against", "Difference to", [["", "nothing"], ...same([...methods].sort((a, b) => (b === "real") - (a === "real")))], "", (v) => { state.against = v; });
  menu("gain", "times", ["1", "2", "4", "8", "16"].map((v) => [v, v]), "4", (v) => { state.gain = Number(v); });
  menu("pane", "Size", [["160", "small"], ["224", "medium"], ["320", "large"], ["512", "largest"]], "224", (v) => { state.pane = Number(v); });
  const button = (id, text, how) => {
    const made = document.createElement("button");
    made.type = "button";
    made.id = id;
    made.textContent = text;
    made.addEventListener("click", () => zoom(how));
    controls.append(made);
  };
  button("zoom-out", "Zoom out", -1);
  button("zoom-in", "Zoom in", 1);
  button("zoom-fit", "Fit", "fit");
  button("zoom-native", "Native pixels", "native");
  const said = document.createElement("output");
  said.id = "zoom-said";
  said.setAttribute("role", "status");
  controls.append(said);
  const group = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = "Methods";
  group.append(legend);
  for (const method of methods) {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = state.method.has(method);
    box.addEventListener("change", () => { state.method[box.checked ? "add" : "delete"](method); fill(); });
    label.append(box, ` ${method}`);
    group.append(label);
  }
  controls.append(group);

  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    const how = { "+": 1, "=": 1, "-": -1, "0": "fit", "1": "native" }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey || (!step && how === undefined)) return;
    event.preventDefault();
    if (step) move(...step);
    else zoom(how);
  });
  let held = null;
  grid.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".pane") && event.button === 0) held = [event.clientX, event.clientY];
  });
  addEventListener("pointermove", (event) => {
    if (!held) return;
    move((held[0] - event.clientX) / state.pane, (held[1] - event.clientY) / state.pane);
    held = [event.clientX, event.clientY];
  });
  addEventListener("pointerup", () => { held = null; });
  grid.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== grid) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1 : -1);
  }, { passive: false });
  home.hidden = false;
  fill();
})();
