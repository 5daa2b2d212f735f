"""How much faster are features read than a training step consumes them?

Stores of Stable Diffusion 1.5's true shapes are written and read in batches of random samples and views, by one
process, as a data loader's worker reads them; the same bytes in one file a sample, as most trainers keep them, stand
beside it. The step is (1) an H100's at 264 pictures a second, by arithmetic (1,670 GFLOP a picture at 45 % of its
peak), and (2) the embedded model's, run here on its own reference pictures. Files are in the page
cache, and seconds are those of one processor, kernel included, so that others on the machine change little.

    python benchmarks/feature_reading.py
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imprompt.emoji.bundle import bundle_folder
from imprompt.generation.quiet import quiet_libraries
from imprompt.recipes import config_named
from imprompt.training.features.shards import Columns, Storage, write_shard
from imprompt.training.features.store import FeatureKind, FeatureSpec, FeatureStore, feature_folder, write_spec
from imprompt.training.loop.task import Draw
from imprompt.training.overrides import override
from imprompt.training.run import Run

H100 = 264
"""Pictures a second of one GPU's cached step on Stable Diffusion 1.5."""

BATCH = 64
WANTED = 10
REPEATS = 5


@dataclass(frozen=True)
class Feature:
    """A feature of a real size, and how many samples of it are read here."""

    kind: FeatureKind
    shape: tuple[int, ...]
    storage: Storage
    samples: int
    views: int = 1

    @property
    def name(self) -> str:
        """What a line of the table says."""
        return f"{self.kind} {'x'.join(map(str, self.shape))} {self.storage}"


FEATURES = (
    Feature("latents", (4, 64, 64), "float16", 4096, views=2),
    Feature("image_embeds", (1024,), "float16", 4096),
    Feature("hidden_states", (257, 1280), "int8", 512),
    Feature("hidden_states", (257, 1280), "float16", 512),
)
EMOJI = (
    Feature("latents", (8, 8, 8), "float16", 8192, views=4),
    Feature("image_embeds", (64,), "float16", 8192, views=2),
)


def write_store(root: Path, feature: Feature, shard_size: int = 512) -> FeatureStore:
    """A store of random numbers."""
    fingerprint = f"{feature.storage:0<32}"
    folder = feature_folder(root, feature.kind, fingerprint)
    prints = tuple(str(number) for number in range(feature.samples // shard_size))
    write_spec(
        folder,
        FeatureSpec(feature.kind, fingerprint, {}, feature.samples, feature.views, feature.storage, shard_size, prints),
    )
    for number, name in enumerate(prints):
        values = torch.randn(shard_size, feature.views, *feature.shape)
        samples: dict[str, Columns | str] = {
            str(number * shard_size + row): {feature.kind: value} for row, value in enumerate(values)
        }
        write_shard(folder, number, name, samples, feature.storage)
    return FeatureStore.open(folder)


def write_files(root: Path, store: FeatureStore) -> list[Path]:
    """The same in a file a sample."""
    paths = []
    for number in range(len(store)):
        rows = [store.rows(torch.tensor([view]), torch.tensor([number])).half() for view in range(store.spec.views)]
        paths.append(root / f"{number}.safetensors")
        save_file({"values": torch.cat(rows)}, paths[-1])
    return paths


def rows_per_second(read: Callable[[Tensor, Tensor], object], samples: int, views: int, rows: int) -> float:
    """Median of some rounds over random samples and views."""
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(REPEATS):
        batches = [
            (torch.randint(views, (BATCH,), generator=generator), torch.randint(samples, (BATCH,), generator=generator))
            for _ in range(max(1, rows // BATCH))
        ]
        started = time.process_time()
        for batch in batches:
            read(*batch)
        rates.append(len(batches) * BATCH / (time.process_time() - started))
    return median(rates)


def read_files(paths: list[Path]) -> Callable[[Tensor, Tensor], Tensor]:
    """A reader of one file a sample."""

    def read(views: Tensor, samples: Tensor) -> Tensor:
        rows = []
        for view, sample in zip(views.tolist(), samples.tolist(), strict=True):
            with safe_open(paths[sample], framework="pt") as file:
                rows.append(file.get_slice("values")[view])
        return torch.stack(rows).float()

    return read


def both(stores: list[FeatureStore]) -> Callable[[Tensor, Tensor], object]:
    """A reader of all that a cached step reads."""
    return lambda views, samples: [store.rows(views, samples) for store in stores]


def emoji_step(folder: Path) -> float:
    """Pictures a second of the embedded model's cached step, with everything read already."""
    settings = [f"data.source={bundle_folder() / 'references'}", f"loop.output={folder}", "loop.device=cpu"]
    task = Run(
        override(config_named("emoji-global"), [*settings, "validation.every=0", "validation.sheet_every=0"])
    ).task
    rows = torch.arange(32)
    batch = task.batch(Draw(step=0, seed=0, samples=rows % task.num_examples, rows=rows, batch_size=32))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-6)
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        task.loss(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return 32 / median(seconds[1:])


def line(name: str, rate: float, consumed: float) -> str:
    """A line of the table."""
    return f"{name:42s} {rate:10,.0f} {rate / consumed:9.1f} x"


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    quiet_libraries()
    with TemporaryDirectory() as name:
        root = Path(name)
        print(f"{'one process, random samples and views':42s} {'rows/s':>10s} {'of 264/s':>11s}")
        stores = {feature: write_store(root, feature) for feature in FEATURES}
        for feature, store in stores.items():
            rows = min(feature.samples, 4096) if feature.samples > 1024 else 256
            print(line(feature.name, rows_per_second(store.rows, len(store), store.spec.views, rows), H100))
        latents, embeds, *_ = stores.values()
        cached = rows_per_second(both([latents, embeds]), len(latents), latents.spec.views, 4096)
        print(line("what the cached step reads: both of the first", cached, H100))
        paths = write_files(root, latents)
        print(
            line("the same latents, one file a sample", rows_per_second(read_files(paths), len(paths), 2, 4096), H100)
        )

        step = emoji_step(root / "run")
        emoji = [write_store(root / "emoji", feature) for feature in EMOJI]
        reading = rows_per_second(both(emoji), len(emoji[0]), 4, 4096)
        print(f"\nembedded model: its cached step takes {step:,.0f} pictures/s here, {reading:,.0f} are read: ", end="")
        print(f"{reading / step:.0f} x")
    worst = min(cached / H100, reading / step)
    print(f"\nreading over consumption: {worst:.1f} x, wanted {WANTED} x: {'met' if worst >= WANTED else 'MISSED'}")


if __name__ == "__main__":
    main()
