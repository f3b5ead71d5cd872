// Sub-networks of a file of nsn's runtime, in a page. The file is fetched in parts, and what is there runs:
//
//     const network = await Network.open("network.nsnrt");  // its header is there
//     const small = network.bySize[0];
//     await network.load(small);                            // as much of the file as it needs
//     const logits = network.run(small, input);             // a Float32Array
//
// Weights lie in WebAssembly's memory once, for all sub-networks.

import createModule from "./nsn.js";

// So much is asked for first: mostly more than the header, whose length it says.
const FIRST_BYTES = 8192;
const MAGIC = "\x93nsnplan";
const BOX = 64; // where weights begin is a multiple of it

export class Network {
  #module;
  #url;
  #etag = null;
  #last = Promise.resolve(); // what is fetched now
  #whole = null; // what a server sends that knows no ranges
  #data; // where the file begins in the module's memory
  #model = 0;
  #session = 0;
  #input;
  #output;
  // Of the file: how long it is, how much of it is there, and how long its header is.
  size = 0;
  bytes = 0;
  headerBytes = 0;
  // {place, name, fileBytes, weightBytes, takesNumbers, inputs, outputs}, in the file's order and the smallest first.
  // Those that take numbers, int64, are not for `run`, and have no inputs.
  subnetworks = [];
  bySize = [];

  // Throws Error, as all of it does, with a message for people.
  static async open(url) {
    const network = new Network();
    network.#module = await createModule();
    network.#url = url;
    await network.#readHeader();
    return network;
  }

  isThere({ place }) {
    return this.#module._web_is_there(this.#model, place) !== 0;
  }

  // Of WebAssembly's memory, which holds the file once, and what runs need.
  get memoryBytes() {
    return this.#module.HEAPU8.length;
  }

  // Fetches what is missing of what a sub-network needs; calls `arrived` as it comes.
  async load({ fileBytes }, arrived) {
    // One at a time: each begins where the one before ended.
    const mine = this.#last.then(() => this.#fetchUntil(fileBytes, arrived));
    this.#last = mine.catch(() => {});
    await mine;
  }

  // One sample of one of `subnetworks` that is loaded, of as many numbers as it has inputs.
  run(subnetwork, input) {
    if (!this.subnetworks.includes(subnetwork)) throw new Error(`run takes one of network.subnetworks, but is given ${subnetwork}.`);
    const { place, name, takesNumbers, inputs, outputs } = subnetwork;
    if (takesNumbers) throw new Error(`'${name}' takes int64, and run gives float32. Run another sub-network.`);
    if (!this.isThere(subnetwork)) throw new Error(`'${name}' is not there yet. Await network.load of it first.`);
    if (input.length !== inputs) throw new Error(`'${name}' takes ${inputs} numbers, but is given ${input.length}. Give one sample.`);
    this.#module.HEAPF32.set(input, this.#input / 4);
    this.#check(this.#module._web_run(this.#session, place, this.#input, this.#output));
    return this.#module.HEAPF32.slice(this.#output / 4, this.#output / 4 + outputs);
  }

  // The median time of a run of the last input, in microseconds. A page's clock ticks coarsely, so that
  // runs are timed many at once.
  time({ place }, rounds = 21) {
    const timed = (runs) => {
      const begin = performance.now();
      this.#check(this.#module._web_run_often(this.#session, place, this.#input, this.#output, runs));
      return performance.now() - begin;
    };
    let runs = 1;
    while (timed(runs) < 1) runs *= 2;
    const times = Array.from({ length: rounds }, () => (1000 * timed(runs)) / runs);
    return times.sort((a, b) => a - b)[rounds >> 1];
  }

  async #readHeader() {
    const response = await this.#request(0, FIRST_BYTES);
    // Weak ones tell no ranges apart.
    const etag = response.headers.get("ETag");
    if (etag !== null && !etag.startsWith("W/")) this.#etag = etag;
    const reader = response.body.getReader();
    let first = new Uint8Array(0);
    for (let chunk; first.length < 32 && (chunk = await this.#next(reader)); ) first = joined(first, chunk);
    // What is none of the runtime's goes to it as it is, since it says best why.
    const view = new DataView(first.buffer);
    const isOurs = first.length >= 32 && String.fromCharCode(...first.subarray(0, 8)) === MAGIC;
    const word = (at) => Number(view.getBigUint64(at, true));
    this.size = isOurs ? word(24) : first.length;
    this.headerBytes = isOurs ? Math.min(word(16), this.size) : 0;
    this.#data = this.#allocate(this.size);
    this.#write(first);
    if (response.status === 206) await this.#take(reader, Infinity);
    else this.#whole = reader;
    await this.#fetchUntil(this.headerBytes);

    this.#model = this.#module._web_model(this.#data, this.bytes);
    if (this.#model === 0) throw this.#error();
    this.#session = this.#module._web_session(this.#model);
    if (this.#session === 0) throw this.#error();
    const { _web_count, _web_name, _web_file_bytes, _web_weight_bytes, _web_inputs, _web_outputs } = this.#module;
    for (let place = 0; place < _web_count(this.#model); ++place) {
      this.subnetworks.push({
        place,
        name: this.#module.UTF8ToString(_web_name(this.#model, place)),
        fileBytes: _web_file_bytes(this.#model, place),
        weightBytes: _web_weight_bytes(this.#model, place),
        takesNumbers: _web_inputs(this.#model, place) === 0,
        inputs: _web_inputs(this.#model, place),
        outputs: _web_outputs(this.#model, place),
      });
    }
    this.bySize = [...this.subnetworks].sort((a, b) => a.fileBytes - b.fileBytes);
    const most = (key) => 4 * Math.max(1, ...this.subnetworks.map((each) => each[key]));
    this.#input = this.#allocate(most("inputs"));
    this.#output = this.#allocate(most("outputs"));
  }

  async #fetchUntil(end, arrived) {
    if (this.bytes >= end) return;
    let reader = this.#whole;
    if (reader === null) {
      const response = await this.#request(this.bytes, end);
      if (response.status !== 206) throw new Error(`'${this.#url}' has changed on its server. Load the page again.`);
      reader = response.body.getReader();
    }
    await this.#take(reader, end, arrived);
    if (this.bytes < end) throw this.#ended();
  }

  // Takes what comes, until `end` is there or no more comes.
  async #take(reader, end, arrived = () => {}) {
    for (let chunk; this.bytes < end && (chunk = await this.#next(reader)); ) {
      this.#write(chunk);
      if (this.#model !== 0) this.#check(this.#module._web_grow_to(this.#model, this.bytes));
      arrived();
    }
  }

  async #next(reader) {
    try {
      return (await reader.read()).value; // undefined at the end
    } catch (error) {
      throw new Error(`'${this.#url}' cannot be fetched: ${error.message}.`);
    }
  }

  async #request(begin, end) {
    const headers = { Range: `bytes=${begin}-${end - 1}` };
    if (this.#etag !== null) headers["If-Range"] = this.#etag;
    let response;
    try {
      response = await fetch(this.#url, { headers });
    } catch (error) {
      throw new Error(`'${this.#url}' cannot be fetched: ${error.message}.`);
    }
    if (response.ok) return response;
    if (response.status === 416) throw this.#ended();
    throw new Error(`'${this.#url}' cannot be fetched: the server says ${response.status} ${response.statusText}.`);
  }

  #write(chunk) {
    const part = chunk.subarray(0, this.size - this.bytes);
    // The module's own view, which is another one when its memory has grown.
    this.#module.HEAPU8.set(part, this.#data + this.bytes);
    this.bytes += part.length;
  }

  #allocate(bytes) {
    const room = Math.max(1, Math.ceil(bytes / BOX)) * BOX;
    const at = room < 2 ** 31 ? this.#module._aligned_alloc(BOX, room) : 0;
    if (at === 0) throw new Error(`There is no memory for ${bytes} bytes of '${this.#url}'.`);
    return at;
  }

  #ended() {
    const wanted = this.size > 0 ? `, and not after ${this.size}` : "";
    return new Error(`'${this.#url}' ends after ${this.bytes} bytes${wanted}.`);
  }

  #check(status) {
    if (status !== 0) throw this.#error();
  }

  #error() {
    return new Error(`'${this.#url}': ${this.#module.UTF8ToString(this.#module._nsn_message())}`);
  }
}

function joined(a, b) {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
