import { encode, ground, load, read, resized } from "./grounder.js";

// As in modeling_albef_amc/visualization.py: every 17th colour of "inferno", whose lightness rises evenly.
const INFERNO = [
  [0, 0, 4], [12, 8, 38], [36, 12, 79], [66, 10, 104], [93, 18, 110], [120, 28, 109], [147, 38, 103], [174, 48, 92],
  [199, 62, 76], [221, 81, 58], [237, 105, 37], [248, 133, 15], [252, 165, 10], [250, 198, 45], [242, 230, 97],
  [252, 255, 164],
];
const COLOURS = Array.from({ length: 256 }, (_, level) => {
  const lower = Math.min(Math.floor(level / 17), 14);
  return INFERNO[lower].map((low, c) => Math.round(low + (INFERNO[lower + 1][c] - low) * (level / 17 - lower)));
});
const OPACITY = 0.6, LARGEST = 1024; // pixels of the drawn photo
const find = (selector) => document.querySelector(selector);
const form = find("form"), canvas = find("canvas"), says = find("output");
const loading = load(new URL("model/", document.baseURI).href);
let shown = null; // {file, bitmap, image}: a photo, and what the model made of it

/** One thing at a time; what goes wrong is said. */
async function busy(work) {
  const buttons = document.querySelectorAll("button, input");
  for (const each of buttons) each.disabled = true;
  await new Promise((painted) => requestAnimationFrame(() => setTimeout(painted)));
  try {
    await work(await loading);
  } catch (error) {
    says.textContent = `That did not work: ${error.message}`;
  }
  for (const each of buttons) each.disabled = false;
}

async function point(model, file, phrase) {
  if (!file) throw new Error("Choose a photo first.");
  const start = performance.now();
  if (shown?.file !== file) shown = { file, bitmap: await bitmapOf(file), image: await encode(model, await read(file)) };
  const { heatmap, score } = await ground(model, shown.image, phrase);
  const { x, y } = draw(shown.bitmap, heatmap);
  const took = ((performance.now() - start) / 1000).toFixed(2);
  canvas.setAttribute("aria-label", `The photo with heat for “${phrase}”, highest at ${x}, ${y}`);
  says.textContent = `“${phrase}” is looked for at ${x}, ${y}, and fits the photo by ${(100 * score).toFixed(0)} %. ${took} s`;
}

async function bitmapOf(file) {
  const { width, height } = await createImageBitmap(file), scale = Math.min(1, LARGEST / Math.max(width, height));
  const size = { resizeWidth: Math.round(width * scale) || 1, resizeHeight: Math.round(height * scale) || 1 };
  return createImageBitmap(file, { ...size, resizeQuality: "high", colorSpaceConversion: "none" });
}

/** Photo, heat over it, and where that is highest, which is returned, in pixels of the canvas. */
function draw(photo, heatmap) {
  const { width, height } = Object.assign(canvas, { width: photo.width, height: photo.height });
  const { data } = resized(heatmap, width, height, -0.75, false);
  let low = Infinity, high = -Infinity, highest = 0;
  data.forEach((value, index) => {
    low = Math.min(low, value);
    if (value > high) [high, highest] = [value, index];
  });
  const heat = new ImageData(width, height);
  data.forEach((value, index) => {
    const level = Math.round(((value - low) * 255) / Math.max(high - low, 1e-30));
    heat.data.set(COLOURS[level], 4 * index);
    heat.data[4 * index + 3] = level * OPACITY;
  });
  const layer = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  layer.getContext("2d").putImageData(heat, 0, 0);
  context.drawImage(photo, 0, 0);
  context.drawImage(layer, 0, 0);
  const x = highest % width, y = Math.floor(highest / width), line = Math.max(1, Math.max(width, height) / 250);
  for (const [colour, radius] of [["#000", 3.5], ["#0ff", 2.5]]) {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x + 0.5, y + 0.5, radius * line, 0, 2 * Math.PI);
    context.fill();
  }
  return { x, y };
}

const answer = () => busy((model) => point(model, form.photo.files[0] ?? shown?.file, form.phrase.value));
form.addEventListener("submit", (event) => { event.preventDefault(); answer(); });
form.photo.addEventListener("change", () => form.phrase.value && answer());

async function example({ photo, lines }) {
  form.photo.value = "";
  form.phrase.value = lines.split("\n")[0];
  await busy(async (model) => point(model, await (await fetch(`examples/${photo}`)).blob(), form.phrase.value));
}

let examples = [];
await busy(async () => {
  examples = await (await fetch("examples/examples.json")).json();
  for (const each of examples) {
    const button = Object.assign(document.createElement("button"), { type: "button", onclick: () => example(each) });
    button.append(Object.assign(new Image(), { src: `examples/${each.photo}`, alt: each.title }));
    find("nav").append(button);
  }
});
if (examples.length) await example(examples[0]);
