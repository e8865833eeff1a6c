"""A volume in chunks on the workers of a dask cluster: each uploads its own, and renders the brightest of each ray.

Of these maximum-intensity projections dask makes one picture, in a tree; it equals NumPy's.
Needs: pip install 'aiostage[dask]' pillow

    python examples/distributed_volume.py [--scheduler tcp://…] [--workers 2] [--software] [--output volume.png]
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from PIL import Image

import aiostage.dask

SIDE, CHUNKS = 256, (64, 128, 128)  # voxels; chunks are cut along all three axes
STOPS = np.array([[0, 0, 0], [60, 20, 110], [190, 55, 85], [250, 150, 50], [255, 250, 210]])

MIP = """
@group(0) @binding(0) var<storage, read> volume: array<f32>;
@group(0) @binding(1) var<storage, read_write> picture: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) pixel: vec3u) {
    let area = arrayLength(&picture);
    if pixel.x >= area { return; }
    var brightest = volume[pixel.x];
    for (var i = pixel.x + area; i < arrayLength(&volume); i += area) { brightest = max(brightest, volume[i]); }
    picture[pixel.x] = brightest;
}
"""


def density(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """One chunk of a torus knot of glowing spheres."""
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)[:, None]
    reach = 0.27 + 0.11 * np.cos(3 * t)
    centres = np.sin(3 * t) / 4, reach * np.sin(2 * t), reach * np.cos(2 * t)
    profiles = [
        np.exp(-2500 * (np.arange(*span) / SIDE - 0.5 - centre) ** 2).astype(np.float32)
        for span, centre in zip(block_info[None]["array-location"], centres, strict=True)
    ]
    profiles[0] *= 0.6 + 0.4 * np.sin(5 * t)  # some glow more
    return np.einsum("tz,ty,tx->zyx", *profiles, optimize=True)


async def project(gpu: aiostage.dask.GpuWorker, chunk: aiostage.dask.GpuArray) -> np.ndarray:
    """On the worker that has the chunk: its partial picture, (1, height, width)."""
    picture = await gpu.empty((1, *chunk.shape[1:]), chunk.dtype)
    await gpu.run(MIP, chunk, picture, groups=(-(-picture.nbytes // 256), 1, 1))
    return await picture.fetch()


def render(client: Client, volume: da.Array) -> tuple[np.ndarray, Counter[str]]:
    """The picture, (height, width), and how many chunks each worker had."""
    chunks = aiostage.dask.upload(client, volume)
    pictures = np.empty(volume.numblocks, object)
    for place, chunk in zip(np.ndindex(volume.numblocks), chunks, strict=True):
        shape = (1, *(sizes[index] for sizes, index in zip(volume.chunks[1:], place[1:], strict=True)))
        pictures[place] = da.from_delayed(aiostage.dask.compute(client, project, chunk), shape, volume.dtype)
    picture = da.block(pictures.tolist()).max(axis=0, split_every=2).compute()  # in a tree of pairs
    return picture, Counter(itertools.chain.from_iterable(client.who_has(chunks).values()))


def paint(picture: np.ndarray) -> Image.Image:
    places = np.linspace(0, picture.max(), len(STOPS))
    return Image.fromarray(np.stack([np.interp(picture, places, STOPS[:, i]) for i in range(3)], -1).astype(np.uint8))


def main(client: Client, output: Path, software: bool = False) -> None:
    client.register_plugin(aiostage.dask.RingPlugin(software=software))
    volume = da.zeros((SIDE, SIDE, SIDE), np.float32, chunks=CHUNKS).map_blocks(density, dtype=np.float32).persist()
    picture, workers = render(client, volume)
    for worker, count in workers.items():
        print(f"{worker}: {count} chunks")
    if not np.array_equal(picture, volume.max(axis=0).compute()):
        raise SystemExit("WRONG: the picture differs from NumPy's")
    paint(picture).save(output)
    print(f"the same as NumPy's; wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheduler", help="of a cluster that runs; by default one of this machine is started")
    parser.add_argument("--workers", type=int, default=2, help="of the cluster that is started: one for each GPU")
    parser.add_argument("--software", action="store_true", help="on software adapters")
    parser.add_argument("--output", type=Path, default=Path("volume.png"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        where = arguments.scheduler or stack.enter_context(LocalCluster(n_workers=arguments.workers))
        main(stack.enter_context(Client(where)), arguments.output, arguments.software)
