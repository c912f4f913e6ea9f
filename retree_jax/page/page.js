// The page of `retree-jax demo`: sends settings and pictures, asks how far the job is, shows what it made.
"use strict";

const $ = (id) => document.getElementById(id);
const SIDE = 512; // pixels of the board
const LOOK = { first: 100, growth: 1.3, last: 500 }; // milliseconds between two looks at a job
const WORDS = { generate: "Generate", paint: "Paint", segment: "Find vessels" };

let action = document.querySelector(".tab")?.dataset.action;
let job = null; // the one that runs

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// What to do

function choose(name) {
  action = name;
  for (const tab of document.querySelectorAll(".tab")) {
    if (tab.dataset.action === name) tab.setAttribute("aria-current", "true");
    else tab.removeAttribute("aria-current");
  }
  for (const section of document.querySelectorAll("[data-for]")) section.hidden = section.dataset.for !== name;
  for (const field of document.querySelectorAll("[data-only]")) {
    field.hidden = field.dataset.only !== name;
    for (const input of field.querySelectorAll("input, select")) input.disabled = field.hidden; // is not sent
  }
  $("settings").hidden = name === "segment";
  $("start").textContent = WORDS[name];
  complain("");
}

// The board

const board = $("board");
const strokes = []; // {width, erases, points} in pixels of the board
let base = null; // a tree under the strokes
let stroke = null;

function repaint() {
  const c = board.getContext("2d");
  c.globalCompositeOperation = "source-over";
  c.fillStyle = "#000";
  c.fillRect(0, 0, SIDE, SIDE);
  if (base) {
    const scale = SIDE / Math.max(base.naturalWidth, base.naturalHeight);
    const [width, height] = [base.naturalWidth * scale, base.naturalHeight * scale];
    c.drawImage(base, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
  }
  c.lineCap = c.lineJoin = "round";
  for (const { width, erases, points } of strokes) {
    c.strokeStyle = erases ? "#000" : "#fff";
    c.lineWidth = width;
    c.beginPath();
    c.moveTo(...points[0]);
    for (const point of points) c.lineTo(...point);
    c.stroke();
  }
}

function place(event) {
  const box = board.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
}

// Two values, as masks have: the pen's soft edges are cut at half.
function drawing() {
  const sheet = make("canvas", { width: SIDE, height: SIDE });
  const c = sheet.getContext("2d");
  c.drawImage(board, 0, 0);
  const pixels = c.getImageData(0, 0, SIDE, SIDE);
  let drawn = 0;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const value = pixels.data[i] >= 128 ? 255 : 0;
    drawn += value > 0;
    pixels.data.set([value, value, value, 255], i);
  }
  c.putImageData(pixels, 0, 0);
  return drawn ? new Promise((done) => sheet.toBlob(done, "image/png")) : null;
}

function setUpBoard() {
  board.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    board.setPointerCapture(event.pointerId);
    forget("tree");
    const erases = $("eraser").getAttribute("aria-pressed") === "true";
    stroke = { width: Number($("pen").value), erases, points: [place(event)] };
    strokes.push(stroke);
    repaint();
  });
  board.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    stroke.points.push(place(event));
    repaint();
  });
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (stroke = null));
  $("pen").addEventListener("input", () => ($("pen-width").value = $("pen").value));
  $("eraser").addEventListener("click", () => {
    $("eraser").setAttribute("aria-pressed", String($("eraser").getAttribute("aria-pressed") !== "true"));
  });
  $("undo").addEventListener("click", () => (strokes.pop(), repaint()));
  $("clear").addEventListener("click", () => (strokes.splice(0), (base = null), repaint()));
  repaint();
}

function edit(url) {
  const picture = make("img", { src: url });
  picture.addEventListener("load", () => {
    strokes.splice(0);
    base = picture;
    forget("tree");
    repaint();
    choose("paint");
    board.scrollIntoView({ block: "center" });
  });
}

// Files

function chosen(kind) {
  return $(`${kind}-file`)?.files[0] ?? null;
}

function preview(kind) {
  const shown = $(`${kind}-preview`);
  if (shown.src) URL.revokeObjectURL(shown.src);
  shown.removeAttribute("src");
  shown.hidden = true;
  const file = chosen(kind);
  if (!file) return;
  shown.onload = () => (shown.hidden = false); // browsers do not show TIFF files
  shown.src = URL.createObjectURL(file);
}

function forget(kind) {
  $(`${kind}-file`).value = "";
  preview(kind);
}

function settings() {
  if (action === "segment") return "";
  const wrong = [...$("settings").elements].find((input) => input.validity.badInput);
  if (wrong) throw new Error(`${wrong.labels[0].textContent} is not a number: give one from ${wrong.min} to ${wrong.max}`);
  return new URLSearchParams([...new FormData($("form"))].filter(([, value]) => value !== ""));
}

async function body() {
  if (action === "generate") return null;
  const file = chosen(action === "paint" ? "tree" : "photograph");
  if (file && file.size > Number(document.body.dataset.maxBytes)) {
    throw new Error(`${file.name} has more than ${document.body.dataset.maxBytes / 2 ** 20} MB: shrink it, or save it as JPEG`);
  }
  if (file) return file;
  if (action === "segment") throw new Error("choose a photograph first");
  const drawn = await drawing();
  if (!drawn) throw new Error("draw some vessels first, or choose a picture of a tree");
  return drawn;
}

// Jobs

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("the server does not answer: look at the terminal in which it was started");
  }
  if (answer.status === 204) return null;
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error ?? `the server answers with error ${answer.status}: try again`);
  return told;
}

function busy(is) {
  $("start").disabled = is;
  $("cancel").hidden = $("progress").hidden = !is;
  $("results").classList.toggle("old", is);
}

function show(told) {
  if (told.state === "waiting") $("bar").removeAttribute("value");
  else $("bar").value = told.share;
  $("status").textContent = told.state === "waiting" ? told.text : `${told.text || "starting"}, ${told.seconds.toFixed(0)} s`;
}

async function start(event) {
  event.preventDefault();
  if (job) return;
  complain("");
  const mine = (job = { name: null });
  busy(true);
  show({ state: "running", text: "", share: 0, seconds: 0 });
  try {
    const told = await ask(`jobs/${action}?${settings()}`, { method: "POST", body: await body() });
    mine.name = told.job;
    for (let pause = LOOK.first; ; pause = Math.min(pause * LOOK.growth, LOOK.last)) {
      if (job !== mine) {
        ask(`jobs/${mine.name}`, { method: "DELETE" }).catch(() => {});
        return;
      }
      const now = await ask(`jobs/${mine.name}`);
      if (now.state === "failed") throw new Error(now.text);
      if (now.state === "done") {
        results(now.result, `jobs/${mine.name}/files/`, now.seconds);
        break;
      }
      show(now);
      await new Promise((done) => setTimeout(done, pause));
    }
  } catch (error) {
    if (job === mine) complain(error.message);
  }
  if (job === mine) {
    job = null;
    busy(false);
  }
}

function cancel() {
  if (job?.name) ask(`jobs/${job.name}`, { method: "DELETE" }).catch(() => {});
  job = null;
  busy(false);
}

// Results

function links(files, root, title, ...more) {
  const anchors = Object.entries(files).map(([text, file]) =>
    make("a", { href: root + file, download: file.split("/").join("_"), textContent: text })
  );
  return make("p", { className: "links" }, title, ...anchors, ...more);
}

function results(result, root, seconds) {
  const strip = make("div", { className: "strip" });
  const card = make("div");
  result.eyes.forEach((eye, i) => {
    const thumbnail = make("img", { src: root + (eye.pictures.photograph ?? eye.pictures.tree), alt: eye.name });
    const button = make("button", { type: "button", title: eye.name }, thumbnail);
    const choice = () => {
      for (const other of strip.children) other.setAttribute("aria-pressed", String(other === button));
      card.replaceChildren(...details(eye, root));
    };
    button.addEventListener("click", choice);
    strip.append(button);
    if (!i) choice();
  });
  strip.hidden = result.eyes.length < 2;
  const title = `${result.eyes.length} in ${seconds.toFixed(0)} s:`;
  const all = Object.keys(result.downloads).length ? links(result.downloads, root, title) : null;
  $("results").replaceChildren(...[strip, all, card].filter(Boolean));
  if (window.matchMedia("(max-width: 820px)").matches) $("results").scrollIntoView({ behavior: "smooth" });
}

function details(eye, root) {
  const names = ["tree", "photograph", "overlay"].filter((name) => eye.pictures[name]);
  const pictures = names.map((name) =>
    make(
      "figure",
      { className: name },
      make("img", { src: root + eye.pictures[name], alt: name }),
      make("figcaption", { textContent: name })
    )
  );
  const again = make("button", { type: "button", textContent: "edit this tree" });
  again.addEventListener("click", () => edit(root + eye.pictures.tree));
  const canPaint = board !== null;
  return [
    make("div", { className: names.length > 1 ? "pictures" : "pictures one" }, ...pictures),
    links(eye.downloads, root, "download:", canPaint ? again : null),
    note(eye),
    nearest(eye, root),
    make("h2", { textContent: "Vessel measures" }),
    table(eye.measures),
    make("p", {
      className: "note",
      textContent:
        `Measured at ${eye.measures.size} × ${eye.measures.size} pixels. The grey band is the range of real eyes ` +
        `(5th to 95th percentile of ${eye.measures.eyes}), the line their median, the dot this eye; a square lies outside ` +
        "the range.",
    }),
  ].filter(Boolean);
}

function note(eye) {
  const record = eye.record;
  if (!record?.attempts) return null;
  const score = record.filter_score === null ? "" : `, filter score ${record.filter_score.toFixed(2)}`;
  const times = record.attempts === 1 ? "the first tree" : `the best of ${record.attempts} trees`;
  const kept = record.attempts === 1 ? times : `tree ${record.attempts}, after ${record.attempts - 1} that the filter rejected`;
  const text = (record.accepted ? kept : `${times}; the filter rejected them all`) + score;
  return make("p", { className: "note", textContent: `Pair ${record.index} of seed ${record.seed}: ${text}.` });
}

function nearest(eye, root) {
  if (!eye.record) return null;
  const title = make("h2", { textContent: "Nearest training eye" });
  if (!eye.nearest) {
    if (document.body.dataset.train) return null;
    const text = "Start the page with --train FOLDER, the eyes on which the models were trained, to see the nearest of them.";
    return make("section", {}, title, make("p", { className: "note", textContent: text }));
  }
  const { name, distance, others, near, isolated, picture } = eye.nearest;
  const text =
    `${name}: distance ${distance}, where 0 is a copy and unrelated pictures have about 1. ` +
    `Real eyes that the models never saw are ${others[0]} to ${others[1]} away from their nearest training eye.`;
  const copied = isolated ? ", and no second training eye is nearly as near: it may be a copy." : ": compare the two.";
  const warning = near ? `It is nearer than 95 % of those${copied}` : "";
  return make(
    "section",
    {},
    title,
    make(
      "div",
      { className: "nearest" },
      make("figure", {}, make("img", { src: root + picture, alt: `training eye ${name}` })),
      make("p", { className: "note" }, `${text} `, make("strong", { textContent: warning }))
    )
  );
}

function table({ rows }) {
  const body = rows.map((row) => {
    const axis = make("div", { className: "axis" });
    const band = make("span");
    band.style.left = `${100 * row.low}%`;
    band.style.width = `${100 * (row.high - row.low)}%`;
    const middle = make("i");
    middle.style.left = `${100 * row.median}%`;
    axis.append(band, middle);
    if (row.at !== null) {
      const dot = make("b", { className: row.inside ? "" : "outside" });
      dot.style.left = `${100 * row.at}%`;
      axis.append(dot);
    }
    axis.title = `real eyes: ${row.range}`;
    const outside = row.inside || row.at === null ? "" : "outside";
    return make(
      "tr",
      {},
      make("td", { textContent: row.label, title: row.definition }),
      make("td", { className: `value ${outside}`, textContent: `${row.value} ${row.unit}` }),
      make("td", {}, axis),
      make("td", { className: "range", textContent: row.range })
    );
  });
  const head = [["measure", ""], ["value", "value"], ["beside real eyes", ""], ["real eyes", "range"]];
  return make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...head.map(([textContent, className]) => make("th", { textContent, className })))),
    make("tbody", {}, ...body)
  );
}

// Start

for (const tab of document.querySelectorAll(".tab")) tab.addEventListener("click", () => choose(tab.dataset.action));
for (const kind of ["tree", "photograph"]) $(`${kind}-file`)?.addEventListener("change", () => preview(kind));
$("new-seed").addEventListener("click", () => ($("set-seed").value = crypto.getRandomValues(new Uint32Array(1))[0]));
$("form").addEventListener("submit", start);
$("cancel").addEventListener("click", cancel);
if (board) setUpBoard();
choose(action);
