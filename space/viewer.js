// The body of the function that gradio calls once for the viewer, with `element`, `props` and `watch`. The view in
// props.value is described in README.md. All that happens after it came happens here, without the server.

// As in modeling_albef_amc/pictures.py: every 17th colour of "inferno", whose lightness rises evenly.
const INFERNO = [
  [0, 0, 4], [12, 8, 38], [36, 12, 79], [66, 10, 104], [93, 18, 110], [120, 28, 109], [147, 38, 103], [174, 48, 92],
  [199, 62, 76], [221, 81, 58], [237, 105, 37], [248, 133, 15], [252, 165, 10], [250, 198, 45], [242, 230, 97],
  [252, 255, 164],
];
const COLOURS = Array.from({ length: 256 }, (_, level) => {
  const lower = Math.min(Math.floor(level / 17), 14);
  return INFERNO[lower].map((low, c) => Math.round(low + (INFERNO[lower + 1][c] - low) * (level / 17 - lower)));
});
const MARK = "#00ffff", RIM = "#000000";
const DOTS = ["#b794ff", "#4fc3d4"]; // of the models, as in the dark page: labels on the photo are dark
const BELOW = 0.4; // of its opacity, heat below the threshold keeps this much
const f32 = Math.fround;

const find = (selector) => element.querySelector(selector);
const stage = find(".stage"), canvas = find("canvas");
const state = { view: null, photo: null, phrase: 0, words: [], opacity: 0.6, threshold: 0.5, split: 0.5, cross: null };
let heats = new Map(); // of the view, by phrase, words and model
let asked = new URLSearchParams(location.search); // for the first answer

// Maps: as PyTorch upsamples them ----------------------------------------------------------------------------------

/** Bicubic (a = -0.75, align_corners false): for each pixel the four cells that it is mixed of, and their weights. */
function taps(cells, pixels) {
  const a = -0.75, scale = f32(cells / pixels);
  const index = new Int32Array(4 * pixels), weight = new Float32Array(4 * pixels);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const place = f32(f32(scale * (pixel + 0.5)) - 0.5), first = Math.floor(place), t = f32(place - first);
    const near = (d) => ((a + 2) * d - (a + 3)) * d * d + 1;
    const far = (d) => ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
    weight.set([far(t + 1), near(t), near(1 - t), far(2 - t)], 4 * pixel);
    for (let k = 0; k < 4; k++) index[4 * pixel + k] = Math.min(Math.max(first - 1 + k, 0), cells - 1);
  }
  return { index, weight };
}

/** Calls take(y, row) for each row of the map at width x height; the row is overwritten by the next one. */
function eachRow(map, width, height, take) {
  const { rows, columns, values } = map, x = taps(columns, width), y = taps(rows, height);
  const across = new Float32Array(rows * width), row = new Float32Array(width);
  for (let r = 0; r < rows; r++)
    for (let p = 0; p < width; p++) {
      let sum = 0;
      for (let k = 4 * p; k < 4 * p + 4; k++) sum += values[r * columns + x.index[k]] * x.weight[k];
      across[r * width + p] = sum;
    }
  for (let q = 0; q < height; q++) {
    const [a, b, c, d] = [0, 1, 2, 3].map((k) => y.index[4 * q + k] * width);
    const [wa, wb, wc, wd] = y.weight.subarray(4 * q, 4 * q + 4);
    for (let p = 0; p < width; p++)
      row[p] = across[a + p] * wa + across[b + p] * wb + across[c + p] * wc + across[d + p] * wd;
    take(q, row);
  }
}

/** The map's value in one pixel of a photo of width x height. */
function valueAt(map, width, height, [x, y]) {
  const { rows, columns, values } = map, across = taps(columns, width), down = taps(rows, height);
  let sum = 0;
  for (let i = 4 * y; i < 4 * y + 4; i++)
    for (let k = 4 * x; k < 4 * x + 4; k++)
      sum += values[down.index[i] * columns + across.index[k]] * across.weight[k] * down.weight[i];
  return sum;
}

function decode(map) {
  const bytes = Uint8Array.from(atob(map.values), (letter) => letter.charCodeAt(0));
  return { rows: map.rows, columns: map.columns, values: new Float32Array(bytes.buffer) };
}

/** Mean of the maps of some words, each as heavy as it has tokens; null when the model sees none of them. */
function meanOfWords(words) {
  const seen = words.filter((word) => word.map !== null);
  const total = seen.reduce((sum, word) => sum + word.tokens, 0);
  if (total === 0) return null;
  const maps = seen.map((word) => decode(word.map));
  const values = maps[0].values.map((_, cell) =>
    maps.reduce((sum, map, k) => sum + (map.values[cell] * seen[k].tokens) / total, 0));
  return { ...maps[0], values };
}

/** The shown map of one model: {map, low, high, point, constant}, in pixels of the photo; null where there is none. */
function heat(model) {
  const key = JSON.stringify([state.phrase, state.words, model]);
  if (!heats.has(key)) heats.set(key, measure(state.view.phrases[state.phrase].answers[model]));
  return heats.get(key);
}

function measure(answer) {
  const whole = state.words.length === 0, { width, height } = state.view.photo;
  const map = whole ? decode(answer.map) : meanOfWords(state.words.map((word) => answer.words[word]));
  if (map === null) return null;
  let low = Infinity, high = -Infinity, point = null;
  eachRow(map, width, height, (y, row) => {
    for (let x = 0; x < width; x++) {
      if (row[x] < low) low = row[x];
      if (row[x] > high) { high = row[x]; point = [x, y]; }
    }
  });
  const constant = map.values.every((value) => value === map.values[0]);
  // Of equally high pixels, rounding decides: the server's choice is the one that its API tells.
  return { map, low, high, constant, point: whole ? answer.point : point, boxes: new Map(), levels: null };
}

/** The half-open box around the pixels that reach the threshold and hang together, by their edges, with the point. */
function boxOf(heat, threshold) {
  const { width, height } = state.view.photo;
  if (heat.constant) return [0, 0, width, height];
  if (!heat.boxes.has(threshold)) heat.boxes.set(threshold, regionBox(heat, width, height, threshold));
  return heat.boxes.get(threshold);
}

function regionBox({ map, low, high, point }, width, height, threshold) {
  const least = f32(f32(threshold) * f32(high - low));
  // Runs of pixels, joined with those of the row before: of each region its first one leads to its box.
  const parent = [], boxes = [];
  const root = (run) => {
    while (parent[run] !== run) run = parent[run] = parent[parent[run]];
    return run;
  };
  let before = [], chosen = null;
  eachRow(map, width, height, (y, row) => {
    const runs = [];
    for (let x = 0, k = 0; x < width; x++) {
      if (f32(row[x] - low) < least) continue;
      const start = x, run = parent.length;
      while (x < width && f32(row[x] - low) >= least) x++;
      parent.push(run);
      boxes.push([start, y, x, y + 1]);
      while (k < before.length && before[k].stop <= start) k++;
      for (let j = k; j < before.length && before[j].start < x; j++) {
        const [one, other] = [root(run), root(before[j].run)];
        if (one === other) continue;
        parent[one] = other;
        const [a, b] = [boxes[one], boxes[other]];
        boxes[other] = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
      }
      if (y === point[1] && start <= point[0] && point[0] < x) chosen = run;
      runs.push({ start, stop: x, run });
    }
    before = runs;
  });
  // At threshold 1, the last bit of the maximum may be rounded differently here.
  return chosen === null ? [point[0], point[1], point[0] + 1, point[1] + 1] : boxes[root(chosen)];
}

// Drawing ------------------------------------------------------------------------------------------------------------

/** The coloured map as a canvas of width x height. */
function colours(heat, width, height) {
  if (heat.levels === null || heat.levels.width !== width || heat.levels.height !== height) {
    const levels = new Uint8Array(width * height), scale = 255 / Math.max(heat.high - heat.low, 1e-30);
    eachRow(heat.map, width, height, (y, row) => {
      for (let x = 0; x < width; x++)
        levels[y * width + x] = heat.constant ? 0 : Math.min(Math.max(Math.round((row[x] - heat.low) * scale), 0), 255);
    });
    heat.levels = { width, height, levels };
  }
  const palette = new Uint32Array(256), channels = new Uint8ClampedArray(palette.buffer);
  for (let level = 0; level < 256; level++) {
    const kept = level >= state.threshold * 255 ? 1 : BELOW;
    channels.set([...COLOURS[level], level * state.opacity * kept], 4 * level);
  }
  const layer = Object.assign(document.createElement("canvas"), { width, height }), context = layer.getContext("2d");
  const picture = context.createImageData(width, height), pixels = new Uint32Array(picture.data.buffer);
  const { levels } = heat.levels;
  for (let pixel = 0; pixel < levels.length; pixel++) pixels[pixel] = palette[levels[pixel]];
  context.putImageData(picture, 0, 0);
  return layer;
}

/** Photo, heat, box and point at width x height; two models share the picture left and right of the divider. */
function paint(context, width, height) {
  const { photo, models } = state.view, middle = Math.round(state.split * width);
  context.imageSmoothingQuality = "high";
  context.drawImage(state.photo, 0, 0, width, height);
  const sides = models.length === 1 ? [[0, width]] : [[0, middle], [middle, width]];
  sides.forEach(([left, right], model) => {
    const shown = heat(model);
    if (shown === null || left === right) return;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, height);
    context.clip();
    context.drawImage(colours(shown, width, height), 0, 0);
    if (!shown.constant) mark(context, shown.point, boxOf(shown, state.threshold), width / photo.width, height / photo.height);
    context.restore();
  });
  if (models.length === 2) {
    sides.forEach((side, model) => ring(context, model, width / photo.width, height / photo.height, side));
    rimmed(context, width / 300, "#ffffff", () => {
      context.moveTo(middle, 0);
      context.lineTo(middle, height);
    });
    drawNames(context, models.map(({ title }) => title), width, height, sides);
  }
}

function mark(context, [x, y], [x1, y1, x2, y2], across, down) {
  const line = Math.max(1, Math.max(context.canvas.width, context.canvas.height) / 250);
  const inset = Math.min(line, ((x2 - x1) * across) / 2, ((y2 - y1) * down) / 2);
  rimmed(context, line, MARK, () =>
    context.rect(x1 * across + inset, y1 * down + inset, (x2 - x1) * across - 2 * inset, (y2 - y1) * down - 2 * inset));
  for (const [colour, radius] of [[RIM, 3.5], [MARK, 2.5]]) {
    context.beginPath();
    context.arc((x + 0.5) * across, (y + 0.5) * down, radius * line, 0, 2 * Math.PI);
    context.fillStyle = colour;
    context.fill();
  }
}

/** Where a model points, in its own colour, if that lies on the other model's side. */
function ring(context, model, across, down, [left, right]) {
  const shown = heat(model), line = Math.max(1, Math.max(context.canvas.width, context.canvas.height) / 250);
  if (shown === null || shown.constant) return;
  const [x, y] = [(shown.point[0] + 0.5) * across, (shown.point[1] + 0.5) * down];
  if (x < left || x > right) rimmed(context, line, DOTS[model], () => context.arc(x, y, 3.5 * line, 0, 2 * Math.PI));
}

/** A line with a dark rim, to be seen on light and dark alike. */
function rimmed(context, width, colour, path) {
  for (const [stroke, wide] of [[RIM, 2 * width], [colour, width]]) {
    context.beginPath();
    path();
    context.strokeStyle = stroke;
    context.lineWidth = wide;
    context.stroke();
  }
}

/** The models' names in the lower corners, each as far as its side of the divider reaches. */
function drawNames(context, names, width, height, sides) {
  const size = Math.max(10, Math.max(width, height) / 36), pad = size / 2;
  context.save();
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const long = names.map((name) => context.measureText(name).width + 2 * pad + size);
  const narrow = long[0] + long[1] + 3 * pad > width; // then one above the other, whole
  names.forEach((name, model) => {
    const x = model === 0 ? pad : width - pad - long[model], top = height - (narrow && model === 0 ? 5 : 2.5) * size;
    context.save();
    context.beginPath();
    if (!narrow) context.rect(sides[model][0], 0, sides[model][1] - sides[model][0], height);
    else context.rect(0, 0, width, height);
    context.clip();
    context.fillStyle = "rgba(0, 0, 0, 0.72)";
    context.beginPath();
    context.roundRect(x, top, long[model], 2 * size, size / 3);
    context.fill();
    context.fillStyle = DOTS[model];
    context.beginPath();
    context.arc(x + pad + size / 4, top + size, size / 4, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "#ffffff";
    context.fillText(name, x + pad + size, top + size);
    context.restore();
  });
  context.restore();
}

/** Four arms that leave the place itself free. */
function drawCross(context, width, height) {
  const x = ((state.cross[0] + 0.5) / state.view.photo.width) * width;
  const y = ((state.cross[1] + 0.5) / state.view.photo.height) * height;
  const unit = Math.max(1, devicePixelRatio), [near, far] = [4 * unit, 15 * unit];
  rimmed(context, 1.5 * unit, "#ffffff", () => {
    for (const [right, down] of Object.values(STEPS)) {
      context.moveTo(x + right * near, y + down * near);
      context.lineTo(x + right * far, y + down * far);
    }
  });
}

function draw() {
  if (state.view === null || stage.clientWidth === 0) return;
  const { width, height } = state.view.photo;
  const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  const [across, down] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  canvas.style.width = `${across}px`;
  canvas.style.height = `${down}px`;
  // The slider's thumb moves over the picture's width, half of itself beyond each end: it stays below the divider.
  find(".swipe").style.width = `${across + 16}px`;
  const dense = Math.min(devicePixelRatio, 2);
  const size = [Math.round(across * dense), Math.round(down * dense)];
  [canvas.width, canvas.height] = size; // also wipes it
  paint(canvas.getContext("2d"), ...size);
  if (state.cross !== null) drawCross(canvas.getContext("2d"), ...size);
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

// The panel ----------------------------------------------------------------------------------------------------------

function make(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (value) => `${Math.round(100 * value)}%`;

/** One bar a model. */
function bars(values) {
  return make("span", { className: "bars" }, values.map((value, model) => {
    const filled = make("i");
    filled.style.width = percent(value);
    return make("span", { className: model ? "bar second" : "bar" }, [filled]);
  }));
}

function showModels(models) {
  const lines = models.flatMap(({ title, trained_on, note }, model) => {
    const name = make("strong", { textContent: title });
    const line = make("p", { className: model ? "second" : "" }, [name, ` · trained on ${trained_on}`]);
    return note ? [line, make("p", { className: "note", textContent: note })] : [line];
  });
  find(".models").replaceChildren(...lines);
}

function showPhrases() {
  const { phrases, models } = state.view;
  const verdict = ({ score, present }) => (present ? percent(score) : "not in this image");
  const rows = phrases.map(({ text, answers }, phrase) => {
    const radio = make("input", { type: "radio", name: "viewer-phrase", checked: phrase === state.phrase });
    radio.addEventListener("change", () => choose(phrase, []));
    const score = make("span", { className: "score", textContent: verdict(answers[0]) });
    score.classList.toggle("absent", !answers[0].present);
    const row = make("label", {}, [radio, make("span", { className: "text", textContent: text }), score]);
    row.append(bars(answers.map((answer) => answer.score)));
    row.title = models.map(({ title }, model) => `${title}: ${percent(answers[model].score)} match`).join("\n");
    return row;
  });
  find(".phrases .list").replaceChildren(...rows);
}

function showWords() {
  const { words, answers } = state.view.phrases[state.phrase];
  const button = (text, pressed, disabled, press) => {
    const made = make("button", { type: "button", textContent: text, disabled, onclick: press });
    made.setAttribute("aria-pressed", pressed);
    return made;
  };
  const toggle = (word) =>
    state.words.includes(word) ? state.words.filter((other) => other !== word) : [...state.words, word].sort((a, b) => a - b);
  const buttons = words.map((text, word) =>
    button(text, state.words.includes(word), answers[0].words[word].map === null, () => choose(state.phrase, toggle(word))));
  const whole = button("whole phrase", state.words.length === 0, false, () => choose(state.phrase, []));
  const group = find(".words"), focused = [...group.querySelectorAll("button")].indexOf(document.activeElement);
  group.replaceChildren(make("span", { className: "title", textContent: "Heat of" }), whole, ...buttons);
  if (focused >= 0) group.querySelectorAll("button")[focused].focus();
}

/** What the chosen map is of, for those who do not see it. */
function describe() {
  const { text, words } = state.view.phrases[state.phrase], shown = heat(0);
  const what = state.words.length ? `${state.words.map((word) => words[word]).join(" ")}, in: ${text}` : text;
  canvas.setAttribute("aria-label", `Heatmap of “${what}” over the photo, highest at ${shown.point.join(", ")}`);
}

/** What each phrase's map says of one pixel: of the cross-hair, or, before there is one, of the shown map's maximum. */
function showHere() {
  const { photo, phrases } = state.view, place = state.cross ?? heat(0).point;
  const rows = phrases.map(({ text, answers }) => {
    const values = answers.map(({ map, point }) => {
      const [here, highest] = [place, point].map((pixel) => valueAt(decode(map), photo.width, photo.height, pixel));
      return highest > 0 ? Math.min(Math.max(here / highest, 0), 1) : 0;
    });
    const number = make("span", { className: "number", textContent: percent(values[0]) });
    return make("li", {}, [make("span", { className: "what", textContent: text, title: text }), bars(values), number]);
  });
  find(".here .place").textContent = `${state.cross ? "At" : "Highest point:"} ${place.join(", ")}`;
  find(".here ul").replaceChildren(...rows);
}

function showSliders() {
  for (const name of ["opacity", "threshold"]) {
    const slider = find(`input[name=${name}]`);
    slider.value = state[name];
    slider.parentElement.querySelector("output").textContent = percent(state[name]);
  }
}

function choose(phrase, words) {
  Object.assign(state, { phrase, words });
  showWords();
  describe();
  showHere();
  say("");
  redraw();
}

function say(sentence) {
  find(".status").textContent = sentence;
}

// Input --------------------------------------------------------------------------------------------------------------

for (const name of ["opacity", "threshold"])
  find(`input[name=${name}]`).addEventListener("input", (event) => {
    state[name] = Number(event.target.value);
    showSliders();
    redraw();
  });

function moveDivider(split) {
  state.split = Math.min(Math.max(split, 0), 1);
  find(".swipe input").value = 100 * state.split;
  redraw();
}
find(".swipe input").addEventListener("input", (event) => moveDivider(event.target.value / 100));

function moveCross(x, y) {
  const { width, height } = state.view.photo;
  state.cross = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  showHere();
  redraw();
}

let dragged = null; // "divider" or "cross" while the pointer is down
function drag(event) {
  const frame = canvas.getBoundingClientRect(), { width, height } = state.view.photo;
  const [x, y] = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
  if (dragged === "divider") moveDivider(x);
  else moveCross(Math.floor(x * width), Math.floor(y * height));
}
function atDivider(event) {
  const frame = canvas.getBoundingClientRect(), divider = frame.left + state.split * frame.width;
  return state.view.models.length === 2 && Math.abs(event.clientX - divider) < 12;
}
canvas.addEventListener("pointerdown", (event) => {
  dragged = atDivider(event) ? "divider" : "cross";
  canvas.setPointerCapture(event.pointerId);
  drag(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (dragged) drag(event);
  else canvas.style.cursor = atDivider(event) ? "ew-resize" : "";
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (dragged = null));

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
stage.addEventListener("keydown", (event) => {
  const { width, height } = state.view.photo, [x, y] = state.cross ?? heat(0).point;
  if (event.key in STEPS) {
    const [right, down] = STEPS[event.key], step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 64));
    moveCross(x + right * step, y + down * step);
  } else if (event.key === "Home") moveCross(...heat(0).point);
  else if (event.key === "Escape") {
    state.cross = null;
    showHere();
    redraw();
  } else return;
  event.preventDefault();
});

// To take away ---------------------------------------------------------------------------------------------------------

function save(parts, ending, type) {
  const { text, words } = state.view.phrases[state.phrase];
  const what = state.words.length ? state.words.map((word) => words[word]).join(" ") : text;
  const name = what.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "heatmap";
  const address = URL.createObjectURL(new Blob(parts, { type }));
  make("a", { href: address, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  say(`Saved ${name}.${ending}`);
}

/** At the size of the preview; small photos as many times larger as makes the marks fine. */
function savePng() {
  const { naturalWidth: width, naturalHeight: height } = state.photo;
  const times = Math.max(1, Math.round(640 / Math.max(width, height)));
  const drawn = make("canvas", { width: width * times, height: height * times });
  paint(drawn.getContext("2d"), drawn.width, drawn.height);
  drawn.toBlob((blob) => save([blob], "png", "image/png"));
}

function saveNpy() {
  const { width, height } = state.view.photo, values = new Float32Array(width * height);
  eachRow(heat(0).map, width, height, (y, row) => values.set(row, y * width));
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${height}, ${width}), }`;
  // Magic, version 1.0 and length are ten bytes; the values begin at a multiple of 64.
  const length = Math.ceil((10 + header.length + 1) / 64) * 64 - 10;
  const start = new Uint8Array([0x93, ..."NUMPY".split("").map((c) => c.charCodeAt(0)), 1, 0, length & 255, length >> 8]);
  save([start, header.padEnd(length - 1) + "\n", values], "npy", "application/octet-stream");
}

function saveJson() {
  const { photo, models, phrases, request } = state.view;
  const shown = models.map(({ id }, model) => {
    const found = heat(model);
    return { model: id, point: found && found.point, box: found && boxOf(found, state.threshold) };
  });
  const { text, words } = phrases[state.phrase];
  const content = {
    photo: { width: photo.width, height: photo.height, link: photo.link },
    models,
    request,
    phrases: phrases.map(({ text, answers }) => ({
      text,
      answers: answers.map(({ score, present, point, box }, m) => ({ model: models[m].id, score, present, point, box })),
    })),
    shown: { phrase: text, words: state.words.map((word) => words[word]), threshold: state.threshold, answers: shown },
  };
  save([JSON.stringify(content, null, 2), "\n"], "json", "application/json");
}

function linkToView() {
  const { photo, request } = state.view, query = new URLSearchParams({ photo: photo.link, lines: request.lines });
  query.set("model", request.model);
  query.set("compare", request.compare ?? "");
  if (request.layer !== null) query.set("layer", request.layer);
  query.set("phrase", state.phrase);
  if (state.words.length) query.set("words", state.words.join(","));
  query.set("opacity", state.opacity);
  query.set("threshold", state.threshold);
  return `${location.origin}${location.pathname}?${query}`;
}

async function copyLink() {
  const link = linkToView();
  try {
    await navigator.clipboard.writeText(link);
    say("The link is copied.");
  } catch (error) {
    // The browser may not let a page use the clipboard.
    find(".status").replaceChildren("Copy it from here: ", make("a", { href: link, textContent: link }));
  }
}

const PRESSED = { png: savePng, npy: saveNpy, json: saveJson, link: copyLink };
for (const [name, press] of Object.entries(PRESSED)) find(`button[name=${name}]`).addEventListener("click", press);

// The answer -----------------------------------------------------------------------------------------------------------

/** Of a link: which phrase and words, and how to show them. */
function takeSettings() {
  const number = (name, most) => {
    const value = Number(asked.get(name));
    return asked.get(name) && value >= 0 && value <= most ? value : null;
  };
  state.opacity = number("opacity", 1) ?? state.opacity;
  state.threshold = number("threshold", 1) ?? state.threshold;
  const phrase = number("phrase", state.view.phrases.length - 1);
  if (Number.isInteger(phrase)) state.phrase = phrase;
  const { words } = state.view.phrases[state.phrase].answers[0];
  const chosen = (asked.get("words") ?? "").split(",").filter(Boolean).map(Number);
  state.words = chosen.filter((word) => words[word]?.map);
  asked = new URLSearchParams();
}

/** On a phone, the answer lies below what was asked. */
function bringIntoSight() {
  if (element.getBoundingClientRect().top < 0.6 * innerHeight) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

function showEmpty(error) {
  Object.assign(state, { view: null, photo: null, cross: null });
  for (const part of [".stage", ".panel", ".here", ".swipe"]) find(part).hidden = true;
  find(".empty").hidden = Boolean(error);
  find(".error").textContent = error ?? "";
}

function showView(view, photo) {
  const same = state.view !== null && state.view.request.lines === view.request.lines;
  Object.assign(state, { view, photo }, same ? {} : { phrase: 0, words: [] });
  const pixels = `${view.photo.width}x${view.photo.height}`;
  if (state.pixels !== pixels) Object.assign(state, { cross: null, pixels });
  heats = new Map();
  takeSettings();
  for (const part of [".stage", ".panel", ".here"]) find(part).hidden = false;
  find(".swipe").hidden = view.models.length < 2;
  find(".empty").hidden = true;
  find(".error").textContent = "";
  const titles = view.models.map(({ title }) => title).join(" and ");
  find(".swipe input").setAttribute("aria-label", `Divider between ${titles}`);
  const link = find("button[name=link]");
  link.disabled = view.photo.link === null;
  link.textContent = link.disabled ? "Own photo: no link" : "Copy link";
  stage.tabIndex = 0;
  showModels(view.models);
  showPhrases();
  showSliders();
  choose(state.phrase, state.words);
}

let latest = 0;
async function take() {
  const view = props.value, number = ++latest;
  if (!view) return;
  if (view.error) return showEmpty(view.error);
  const photo = new Image();
  photo.src = view.photo.src;
  await photo.decode();
  if (number === latest) showView(view, photo);
}

if (props.models) showModels(props.models);
watch("value", async () => {
  await take();
  bringIntoSight();
});
// What the page opens with, unless a link asks for something else, which the server answers at once.
if (!asked.get("photo") || !asked.get("lines")) take();
new ResizeObserver(redraw).observe(stage);
