// From strokes to what the network was trained on, as MNIST was made: the ink fits into 20 x 20 of 28 x 28
// pixels, with its centre of mass in the middle. Numbers from 0, paper, to 1, ink.

export const SIDE = 28;
const BOX = 20;
const PEN = 2.6; // about as wide as MNIST's lines
const LEAST = 60; // strokes no longer than this are not enlarged to the whole box

const canvas = new OffscreenCanvas(SIDE, SIDE);
const context = canvas.getContext("2d", { willReadFrequently: true });

// Strokes are lists of points [x, y], in pixels of the page.
export function drawStrokes(context, strokes, width) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    // A stroke of one point is a dot.
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
}

export function digitOf(strokes) {
  const points = strokes.flat();
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = (BOX - PEN) / Math.max(right - left, bottom - top, LEAST);
  const middle = [(left + right) / 2, (top + bottom) / 2];
  const drawn = inkAt(strokes, scale, middle);
  let [sum, x, y] = [0, 0, 0];
  drawn.forEach((ink, i) => {
    sum += ink;
    x += ink * ((i % SIDE) + 0.5);
    y += ink * (Math.floor(i / SIDE) + 0.5);
  });
  const mass = [x, y].map((moment, i) => middle[i] + (moment / sum - SIDE / 2) / scale);
  return inkAt(strokes, scale, mass);
}

// The strokes, enlarged, with `middle` in the middle.
function inkAt(strokes, scale, middle) {
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, SIDE, SIDE);
  context.setTransform(scale, 0, 0, scale, SIDE / 2 - scale * middle[0], SIDE / 2 - scale * middle[1]);
  drawStrokes(context, strokes, PEN / scale);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  return Float32Array.from({ length: SIDE * SIDE }, (_, i) => data[4 * i + 3] / 255);
}
