// What `albef-amc export --format onnx` wrote, run in the browser: a photo and a phrase in, a heatmap out.
import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";

// Of the version in index.html.
const WASM = "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM";
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

/** The two programs and the processor in `folder`, an address that ends with a slash. */
export async function load(folder) {
  const file = async (url, options) => {
    const response = await fetch(url, options);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    return response;
  };
  const wasm = new URL("ort-wasm-simd-threaded.wasm", import.meta.resolve("onnxruntime-web"));
  ort.env.wasm.wasmBinary = await (await file(wasm, { integrity: WASM })).arrayBuffer();
  const json = async (name) => (await file(folder + name)).json();
  const session = async (name) => ort.InferenceSession.create(await (await file(folder + name)).arrayBuffer());
  const names = ["tokenizer.json", "tokenizer_config.json", "processor_config.json"];
  const [tokens, options, { image_processor: settings }] = await Promise.all(names.map(json));
  const [encoder, grounder] = await Promise.all(["image_encoder.onnx", "phrase_grounder.onnx"].map(session));
  return { tokenizer: new Tokenizer(tokens, options), settings, encoder, grounder };
}

/** RGB {data, width, height, channels} of a file, upright, on white where it is transparent. */
export async function read(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { data: data.filter((_, index) => index % 4 !== 3), width, height, channels: 3 };
}

/** What the image encoder makes of a picture; serves any number of phrases. */
export async function encode({ settings, encoder }, picture) {
  const { width, height } = settings.size, { data } = resized(picture, width, height, -0.5, true);
  const pixels = new Float32Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++)
    for (let c = 0; c < 3; c++)
      pixels[c * width * height + pixel] =
        (data[3 * pixel + c] * settings.rescale_factor - settings.image_mean[c]) / settings.image_std[c];
  return encoder.run({ pixel_values: new ort.Tensor("float32", pixels, [1, 3, height, width]) });
}

/** Heatmap of the patch grid, {data, width, height, channels}, and probability that the phrase fits the image. */
export async function ground({ tokenizer, grounder }, image, phrase) {
  const { ids } = tokenizer.encode(phrase);
  if (ids.length < 2) throw new Error("There is no word to look for.");
  const integers = (values, shape) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
  const { heatmaps, itm_logits } = await grounder.run({
    ...image,
    input_ids: integers(ids, [1, ids.length]),
    attention_mask: integers(ids.map(() => 1), [1, ids.length]),
    image_index: integers([0], [1]),
  });
  const [, height, width] = heatmaps.dims, [no, yes] = itm_logits.data;
  return { heatmap: { data: heatmaps.data, width, height, channels: 1 }, score: 1 / (1 + Math.exp(no - yes)) };
}

/** Bicubic; `a` -0.5 and `antialias` as Pillow, -0.75 without as PyTorch. Values are rounded as their array does. */
export function resized({ data, width, height, channels }, newWidth, newHeight, a, antialias) {
  const alongRows = filtered(data, height, width, newWidth, channels, a, antialias);
  const both = filtered(alongRows, 1, height, newHeight, newWidth * channels, a, antialias);
  return { data: both, width: newWidth, height: newHeight, channels };
}

/** The middle axis of (outer, from, inner) becomes `to` long. */
function filtered(data, outer, from, to, inner, a, antialias) {
  const found = new data.constructor(outer * to * inner), scale = from / to, stretch = antialias ? Math.max(scale, 1) : 1;
  for (let place = 0; place < to; place++) {
    const center = (place + 0.5) * scale, first = Math.floor(center - 2 * stretch + 0.5), weights = [];
    for (let k = first; k < Math.floor(center + 2 * stretch + 0.5); k++)
      weights.push(antialias && (k < 0 || k >= from) ? 0 : cubic(Math.abs(k + 0.5 - center) / stretch, a));
    const total = weights.reduce((sum, weight) => sum + weight);
    const rows = weights.map((_, j) => Math.min(Math.max(first + j, 0), from - 1) * inner);
    for (let o = 0; o < outer; o++)
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        for (let j = 0; j < weights.length; j++) sum += weights[j] * data[o * from * inner + rows[j] + i];
        found[(o * to + place) * inner + i] = sum / total;
      }
  }
  return found;
}

function cubic(x, a) {
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}
