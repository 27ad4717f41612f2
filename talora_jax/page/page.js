// The page: sends an image, shows what models see in it, asks for masks.

const $ = (id) => document.getElementById(id);
const state = {
  models: [],
  model: 0,
  image: null,    // {id, width, height}
  maps: [],       // of every task its map, with `values`
  points: [], labels: [], box: null,
  masks: null,    // {numbers, masks}: whose mask a pixel is, and what they are
  turn: 0,        // counts questions: answers to older ones are dropped
  awaited: 0,     // images and maps on their way: what is shown is of another image or model
};

// Words and progress.

function say(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

async function ask(path, how) {
  const response = await fetch(path, how).catch(() => {
    throw new Error("The server does not answer: is it still running?");
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Error(told.error ?? `The server answered ${response.status}.`);
}

// Does something that takes a while; what goes wrong is said. Gives undefined where it was overtaken.
async function during(words, work) {
  const turn = ++state.turn;
  say(words, "busy");
  const started = performance.now();
  try {
    const done = await work();
    if (turn !== state.turn) return undefined;
    say(`${((performance.now() - started) / 1000).toFixed(1)} s`);
    return done;
  } catch (error) {
    if (turn === state.turn) say(error.message, "wrong");
    return undefined;
  }
}

const post = async (path, question) =>
  (await ask(path, { method: "POST", body: JSON.stringify(question) })).json();

// Images in.

// Nothing can be asked about what is shown while something else comes in its place.
function awaiting(change) {
  state.awaited += change;
  $("main").inert = state.awaited > 0;
}

async function send(blob) {
  if (!await ready) return;
  awaiting(1);
  const image = await during("Reading the image …", async () =>
    (await ask("images", { method: "POST", body: blob })).json());
  if (image) {
    state.image = image;
    await look();
  }
  awaiting(-1);
}

async function look() {
  const { image, model } = state;
  if (!image) return;
  awaiting(1);
  let maps;
  await during("Looking at the image, longer at the first of its shape …", async () => {
    const path = `images/${image.id}/${model}`;
    const found = await (await ask(path)).json();
    for (const map of found) {
      const buffer = await (await ask(`${path}/${map.name}/values`)).arrayBuffer();
      map.values = map.dtype === "int32" ? new Int32Array(buffer) : new Float32Array(buffer);
      map.picture = `${path}/${map.name}/picture`;
    }
    maps = found;
  });
  awaiting(-1);
  if (image !== state.image || model !== state.model) return;
  $("main").hidden = !maps;
  if (!maps) return;
  state.maps = maps;
  forget();
  draw();
}

// What is seen.

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function tile(title, ...layers) {
  const value = element("span", { className: "value" });
  const stack = element("div", { className: "stack" }, ...layers);
  const figure = element("figure", {}, element("figcaption", {}, title, value), stack);
  figure.dataset.task = title;
  for (const at of ["pointerdown", "pointermove"]) {
    stack.addEventListener(at, (event) => point(place(event, stack)));
  }
  // A finger has left when it is lifted: what it touched is read then.
  stack.addEventListener("pointerleave", (event) => event.pointerType === "touch" || point(null));
  return figure;
}

function draw() {
  const photo = () => element("img", {
    src: `images/${state.image.id}`, alt: "the image", draggable: false,
    width: state.image.width, height: state.image.height,
  });
  const tiles = state.maps.map((map) => {
    const made = tile(map.name, photo(),
      element("img", { src: map.picture, className: "map", alt: `its ${map.name}`, draggable: false }),
      element("div", { className: "edge" }));
    made.append(legend(map.legend));
    return made;
  });
  const model = state.models[state.model];
  if (model.promptable) {
    const canvas = element("canvas", { id: "mask", width: state.image.width, height: state.image.height });
    const made = tile("masks", photo(), canvas);
    prompts(made.querySelector(".stack"));
    made.append(element("p", { className: "legend",
      textContent: "Click on a thing; shift-click what is not of it, or press long; or drag a box. " +
        "With the keyboard: arrows, Enter, shift-Enter." }));
    tiles.unshift(made);
  }
  for (const id of ["everything", "sure", "clear"]) $(id).hidden = !model.promptable;
  $("tiles").replaceChildren(...tiles);
  slide();
}

function legend(told) {
  const box = element("div", { className: "legend" });
  const swatch = (colour) => {
    const made = element("i");
    made.style.background = colour;
    return made;
  };
  for (const [entry, colour] of told.swatches ?? []) {
    box.append(element("span", {}, swatch(colour), entry));
  }
  if (told.bar) {
    const strip = element("div", { className: "bar" });
    strip.style.background = `linear-gradient(to right, ${told.bar.join(", ")})`;
    const ends = [told.low, told.high].map((x) =>
      element("span", { textContent: `${Number(x.toPrecision(3))} ${told.unit}` }));
    box.append(strip, element("div", { className: "ends" }, ...ends));
  }
  if (told.picture) {
    box.append(
      element("img", { src: `data:image/png;base64,${told.picture}`, alt: "what directions look like" }),
      element("p", { textContent: told.lines.join("\n") }));
  }
  return box;
}

function slide() {
  $("tiles").style.setProperty("--shown", `${$("slider").value}%`);
}

// The value under the pointer, in every tile.

function place(event, stack) {
  const box = stack.getBoundingClientRect();
  const within = (x, size) => Math.min(size - 1, Math.max(0, Math.floor(x * size)));
  return [
    within((event.clientX - box.left) / box.width, state.image.width),
    within((event.clientY - box.top) / box.height, state.image.height),
  ];
}

function told(map, index) {
  const at = Array.from(map.values.subarray(index * map.channels, (index + 1) * map.channels));
  if (map.dtype === "int32") return map.classes[at[0]] ?? String(at[0]);
  const unit = map.legend.unit ? ` ${map.legend.unit}` : "";
  return at.length === 1 ? at[0].toFixed(2) + unit : `(${at.map((x) => x.toFixed(2)).join(", ")})`;
}

function point(at) {
  const index = at && at[1] * state.image.width + at[0];
  for (const figure of $("tiles").children) {
    const map = state.maps.find((one) => one.name === figure.dataset.task);
    figure.querySelector(".value").textContent =
      at === null ? "" : map ? told(map, index) : mask(index);
  }
}

function mask(index) {
  const number = state.masks?.numbers[index];
  if (!number) return "";
  const { name, probability, depth, iou, area } = state.masks.masks[number - 1];
  return [
    name && `${name} ${Math.round(100 * probability)} %`,
    depth != null && `${depth.toFixed(1)} m`,
    iou != null && `expected IoU ${iou.toFixed(2)}`,
    `${area} pixels`,
  ].filter(Boolean).join(", ");
}

// Prompts.

function prompts(stack) {
  let start = null;  // of a press: where, and when
  stack.classList.add("ask");
  stack.tabIndex = 0;
  stack.setAttribute("role", "application");
  stack.setAttribute("aria-label", "the image: click, or move with arrows and press Enter");
  let cursor = [state.image.width >> 1, state.image.height >> 1];
  stack.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    start = { at: place(event, stack), time: event.timeStamp };
    stack.setPointerCapture(event.pointerId);
  });
  // From where it was pressed to here, or null for a click; a finger never is quite still.
  const dragged = (event) => {
    const ends = [start.at, place(event, stack)];
    const still = (event.pointerType === "touch" ? 0.05 : 0.015) * state.image.width;
    if (Math.hypot(ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]) <= still) return null;
    const [xs, ys] = [0, 1].map((axis) => ends.map((end) => end[axis]).sort((a, b) => a - b));
    return [xs[0], ys[0], xs[1] + 1, ys[1] + 1];
  };
  stack.addEventListener("pointermove", (event) => {
    if (start && event.isPrimary) dots(null, dragged(event) ?? state.box);
  });
  stack.addEventListener("pointerup", (event) => {
    if (!start || !event.isPrimary) return;
    const box = dragged(event);
    const long = event.pointerType === "touch" && event.timeStamp - start.time > 500;
    start = null;
    if (box) {
      forget();
      state.box = box;
    } else click(place(event, stack), event.shiftKey || event.button === 2 || long);
    answer();
  });
  stack.addEventListener("pointercancel", () => {
    start = null;
    dots();
  });
  stack.addEventListener("contextmenu", (event) => event.preventDefault());
  stack.addEventListener("keydown", (event) => {
    const step = Math.max(1, Math.round(state.image.width / 60));
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      cursor = [
        Math.min(state.image.width - 1, Math.max(0, cursor[0] + step * move[0])),
        Math.min(state.image.height - 1, Math.max(0, cursor[1] + step * move[1])),
      ];
      point(cursor);
      dots(cursor);
    } else if (event.key === "Enter") {
      click(cursor, event.shiftKey);
      answer();
    } else return;
    event.preventDefault();
  });
}

function click(at, off) {
  if (state.masks && !state.points.length && !state.box) forget();
  state.points.push(at.map((x) => x + 0.5));
  state.labels.push(off ? 0 : 1);
}

async function answer() {
  dots();
  const { points, labels, box } = state;
  const found = await during("Asking for the mask …", () =>
    post(`images/${state.image.id}/${state.model}/mask`, { points, labels, box }));
  if (!found) return;
  show(found.numbers, [found], ["#ffb000"]);
}

async function everything() {
  const found = await during("Looking for everything …", () =>
    post(`images/${state.image.id}/${state.model}/everything`, { expected_iou: Number($("iou").value) }));
  if (!found) return;
  forget();
  show(found.numbers, found.masks, found.colours);
  say(`${found.masks.length} masks: point at one to read what it is.`);
}

function show(numbers, masks, colours) {
  const bytes = Uint8Array.from(atob(numbers), (letter) => letter.charCodeAt(0));
  state.masks = { numbers: new Uint16Array(bytes.buffer), masks };
  paint(colours);
}

function paint(colours) {
  const canvas = $("mask");
  if (!canvas) return;
  const { width, height } = canvas;
  const picture = new ImageData(width, height);
  const parts = colours.map((colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)));
  const numbers = state.masks?.numbers;
  for (let i = 0; numbers && i < numbers.length; i++) {
    const number = numbers[i];
    const edge = (i % width + 1 < width && numbers[i + 1] !== number) ||
      (i + width < numbers.length && numbers[i + width] !== number);
    if (edge) picture.data.set([255, 255, 255, 230], 4 * i);
    else if (number) picture.data.set([...parts[number - 1], 135], 4 * i);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// Draws what is asked; `box` may be one that is being dragged.
function dots(cursor = null, box = state.box) {
  const stack = $("mask")?.parentElement;
  if (!stack) return;
  stack.querySelectorAll(".dot, .box").forEach((drawn) => drawn.remove());
  const put = ([x, y], colour) => {
    const dot = element("div", { className: "dot" });
    dot.style.left = `${100 * x / state.image.width}%`;
    dot.style.top = `${100 * y / state.image.height}%`;
    dot.style.background = colour;
    stack.append(dot);
  };
  state.points.forEach((at, i) => put(at, state.labels[i] ? "#19a974" : "#e7040f"));
  if (box) {
    const { width, height } = state.image;
    const sides = [box[1] / height, 1 - box[2] / width, 1 - box[3] / height, box[0] / width];
    const drawn = element("div", { className: "box" });
    drawn.style.inset = sides.map((side) => `${100 * side}%`).join(" ");
    stack.append(drawn);
  }
  if (cursor) put(cursor, "transparent");
}

function forget() {
  Object.assign(state, { points: [], labels: [], box: null, masks: null });
  dots();
  paint([]);
}

// The camera.

async function camera() {
  if (!navigator.mediaDevices) {
    say("No camera: a browser gives one only to pages of its own machine, or over https.", "wrong");
    return;
  }
  $("camera").disabled = true;  // until it is allowed, or not
  $("take").disabled = true;  // until there is a picture
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
    $("live").showModal();
  } catch (error) {
    say(`No camera: ${error.message}`, "wrong");
  }
  $("camera").disabled = false;
}

function put_away() {
  $("video").srcObject?.getTracks().forEach((track) => track.stop());
  $("video").srcObject = null;
  $("live").close();
}

function take() {
  const { videoWidth: width, videoHeight: height } = $("video");
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  put_away();
  canvas.toBlob(send, "image/jpeg", 0.95);
}

$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) send($("file").files[0]);
  $("file").value = "";
});
$("camera").addEventListener("click", camera);
$("video").addEventListener("loadeddata", () => { $("take").disabled = false; });
$("take").addEventListener("click", take);
$("stop").addEventListener("click", put_away);
$("live").addEventListener("cancel", put_away);
$("slider").addEventListener("input", slide);
$("everything").addEventListener("click", everything);
$("clear").addEventListener("click", forget);
$("model").addEventListener("change", () => {
  state.model = Number($("model").value);
  look();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
for (const over of ["dragleave", "drop"]) {
  document.addEventListener(over, () => document.body.classList.remove("dragging"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file) send(file);
  else say("What was dropped is no file.", "wrong");
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData.files[0];
  if (file) send(file);
});

// An image may come before the server has told what there is.
const ready = during("Asking what there is …", async () => {
  state.models = await (await ask("models")).json();
  $("model").replaceChildren(...state.models.map((model, i) =>
    element("option", { value: i, textContent: `${model.name} (${model.tasks.join(", ")})` })));
  $("choice").hidden = state.models.length < 2;
  return true;
}).then((done) => {
  if (done) say("Open an image, or drop one anywhere on the page.");
  return state.models.length > 0;
});
