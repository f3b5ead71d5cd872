"""examples/web/network.js where there is node, over a module that stands for WebAssembly's.

The page itself, and the module, are tested by `make web-test`.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "examples" / "web"

#: A file of two sub-networks, the second of which takes int64; web.c says what each function is.
MODULE = """
export default async () => ({
  HEAPU8: new Uint8Array(4096),
  HEAPF32: new Float32Array(1024),
  UTF8ToString: (text) => text,
  _aligned_alloc: () => 64,
  _nsn_message: () => "the module was asked",
  _web_model: () => 1,
  _web_session: () => 2,
  _web_count: () => 2,
  _web_is_there: () => 1,
  _web_name: (model, place) => ["plain", "words"][place],
  _web_file_bytes: () => 64,
  _web_weight_bytes: () => 32,
  _web_inputs: (model, place) => [6, 0][place],
  _web_outputs: () => 3,
  _web_run: (session, place) => place,
});
"""

SCRIPT = """
import { Network } from "./network.js";
globalThis.fetch = async () => new Response(new Uint8Array(64));
const network = await Network.open("net");
console.log(network.subnetworks.map((each) => each.takesNumbers).join());
console.log(network.run(network.subnetworks[0], new Float32Array(6)).length);
for (const input of [new Float32Array(6), new Float32Array(0)]) {
  try {
    network.run(network.subnetworks[1], input);
  } catch (error) {
    console.log(error.message);
  }
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_numbers_are_refused_by_name(tmp_path: Path) -> None:
    shutil.copy(WEB / "network.js", tmp_path)
    (tmp_path / "nsn.js").write_text(MODULE)
    (tmp_path / "main.js").write_text(SCRIPT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        ["node", "main.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    refused = "'words' takes int64, and run gives float32. Run another sub-network."
    assert done.stdout.splitlines() == ["false,true", "3", refused, refused]
