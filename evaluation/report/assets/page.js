"use strict";
// Before/after comparison: two pictures at one place and zoom, the left one cut off at the divider.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.pictures.length) return;
  const at = id => document.getElementById(id);
  const stage = at("stage"), over = at("over"), under = at("under"), clip = at("clip"), divider = at("divider");
  const MAX_ZOOM = 16, WHEEL = 1.0015, STEP = 1.25, NUDGE = 0.02, PIXELS_FROM = 3;
  const view = {picture: 0, left: null, right: null, split: 0.5, zoom: 1, x: 0, y: 0, fitted: true};

  const picture = () => data.pictures[view.picture];
  // what can be shown: the layers, and the pictures after each scale
  const sources = () => [...picture().layers,
    ...picture().strip.map(s => ({label: `${s.method}, side ${s.side}`, uri: s.uri, kind: "scale"}))];
  const source = label => sources().find(s => s.label === label);
  const size = () => picture().layers[0];

  function element(tag, parent, text, attributes = {}) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  }

  function choose(kinds, fallback) {
    const found = kinds.map(kind => picture().layers.find(l => l.kind === kind)).find(Boolean);
    return (found || picture().layers.at(fallback)).label;
  }

  function showPicture(index) {
    view.picture = (index + data.pictures.length) % data.pictures.length;
    // the sides stay what they were where this picture has them
    if (!source(view.left)) view.left = choose(["lr", "result"], 0);
    if (!source(view.right)) view.right = choose(view.left === choose(["lr"], 0) ? ["result", "hr"] : ["hr"], -1);
    [...at("list").children].forEach((b, i) => {
      b.setAttribute("aria-current", i === view.picture);
      if (i === view.picture) {  // scroll the list, never the page
        const list = at("list"), top = b.offsetTop - list.offsetTop;
        if (top < list.scrollTop || top + b.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top;
      }
    });
    for (const side of ["left", "right"]) {
      const select = at(side);
      select.replaceChildren();
      for (const s of sources()) element("option", select, s.label, {value: s.label});
    }
    fillValues();
    fillStrip();
    fit();
    showSides();
  }

  function showSides() {
    for (const [side, image] of [["left", over], ["right", under]]) {
      const chosen = source(view[side]);
      if (image.getAttribute("src") !== chosen.uri) image.src = chosen.uri;
      image.style.width = `${size().width}px`;
      image.style.height = `${size().height}px`;
      at(side).value = view[side];
      at(`${side}-tag`).textContent = view[side];
    }
    [...at("strip").children].forEach(b => b.setAttribute("aria-pressed", b.dataset.label === view.left));
    place();
  }

  function fillStrip() {
    at("strip").replaceChildren();
    for (const s of picture().strip) {
      const label = `${s.method}, side ${s.side}`;
      const button = element("button", at("strip"), undefined, {"data-label": label, title: label});
      element("img", button, undefined, {src: s.uri, alt: label});
      element("span", button, `${s.side}×${s.side}`);
      button.addEventListener("click", () => { view.left = label; showSides(); });
    }
  }

  function fillValues() {
    const table = at("values"), measured = picture().layers.filter(l => Object.keys(l.values).length);
    const columns = data.metrics.filter(m => measured.some(l => m.column in l.values));
    table.replaceChildren();
    if (!measured.length) return;
    const head = element("tr", table);
    element("th", head, "");
    for (const metric of columns) element("th", head, metric.label);
    for (const layer of measured) {
      const row = element("tr", table);
      element("th", row, layer.label);
      for (const metric of columns) {
        const value = layer.values[metric.column];
        element("td", row, value === undefined ? "–" : value === "inf" ? "∞" : String(Number(Number(value).toPrecision(4))));
      }
    }
  }

  function place() {
    const width = stage.clientWidth, height = stage.clientHeight, shown = size();
    const w = shown.width * view.zoom, h = shown.height * view.zoom;
    // what is smaller than the stage stays in the middle, what is larger covers it
    view.x = w <= width ? (width - w) / 2 : Math.min(0, Math.max(width - w, view.x));
    view.y = h <= height ? (height - h) / 2 : Math.min(0, Math.max(height - h, view.y));
    const cut = view.split * width;
    for (const image of [over, under]) image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    clip.style.clipPath = `inset(0 ${width - cut}px 0 0)`;
    divider.style.left = `${cut}px`;
    divider.setAttribute("aria-valuenow", Math.round(view.split * 100));
    stage.classList.toggle("pixels", view.zoom >= PIXELS_FROM);
    at("zoom").textContent = `${Math.round(view.zoom * 100)} %`;
  }

  const fitting = () => Math.min(stage.clientWidth / size().width, stage.clientHeight / size().height);

  function fit() {
    view.zoom = fitting();
    view.fitted = true;
    place();
  }

  function zoomTo(zoom, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const next = Math.min(MAX_ZOOM, Math.max(Math.min(fitting(), 1), zoom)), ratio = next / view.zoom;
    Object.assign(view, {x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio, zoom: next, fitted: false});
    place();
  }

  function moveDivider(split) {
    view.split = Math.min(1, Math.max(0, split));
    place();
  }

  function dragging(node, onMove) {
    node.addEventListener("pointerdown", start => {
      if (start.button !== 0) return;
      start.preventDefault();
      start.stopPropagation();
      stage.focus({preventScroll: true});
      node.setPointerCapture(start.pointerId);
      let last = start;
      const move = event => { onMove(event, event.clientX - last.clientX, event.clientY - last.clientY); last = event; };
      const stop = () => {
        node.removeEventListener("pointermove", move);
        stage.classList.remove("moving");
      };
      node.addEventListener("pointermove", move);
      node.addEventListener("pointerup", stop, {once: true});
      node.addEventListener("pointercancel", stop, {once: true});
    });
  }

  dragging(divider, event => {
    const box = stage.getBoundingClientRect();
    moveDivider((event.clientX - box.left) / box.width);
  });
  dragging(stage, (event, dx, dy) => {
    stage.classList.add("moving");
    view.x += dx;
    view.y += dy;
    place();
  });
  stage.addEventListener("wheel", event => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoomTo(view.zoom * WHEEL ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});

  const keys = {
    ArrowRight: () => showPicture(view.picture + 1), ArrowLeft: () => showPicture(view.picture - 1),
    KeyA: () => moveDivider(view.split - NUDGE), KeyD: () => moveDivider(view.split + NUDGE),
    Equal: () => zoomTo(view.zoom * STEP), NumpadAdd: () => zoomTo(view.zoom * STEP),
    Minus: () => zoomTo(view.zoom / STEP), NumpadSubtract: () => zoomTo(view.zoom / STEP),
    Digit0: fit, Numpad0: fit,
  };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, summary")) return;
    const digit = /^Digit([1-9])$/.exec(event.code);
    const layer = digit && picture().layers[digit[1] - 1];
    const act = layer ? () => { view[event.shiftKey ? "left" : "right"] = layer.label; showSides(); }
      : event.key === "+" ? keys.Equal : event.key === "-" ? keys.Minus : keys[event.code];
    if (!act) return;
    event.preventDefault();
    act();
  });

  for (const side of ["left", "right"])
    at(side).addEventListener("change", event => { view[side] = event.target.value; showSides(); });
  at("larger").addEventListener("click", () => zoomTo(view.zoom * STEP));
  at("smaller").addEventListener("click", () => zoomTo(view.zoom / STEP));
  at("fit").addEventListener("click", fit);
  window.addEventListener("resize", () => view.fitted ? fit() : place());
  data.pictures.forEach((p, i) => {
    const button = element("button", at("list"), undefined, {title: p.name});
    element("img", button, undefined, {src: p.thumbnail, alt: ""});
    element("span", button, p.name);
    button.addEventListener("click", () => showPicture(i));
  });
  showPicture(0);
})();
