"""Hostile adapter files in numbers: no code runs, nothing crashes, every refusal names its file, memory stays bounded.

python benchmarks/fuzz_files.py                     # 20,000 mutants of safetensors, 2,000 of pickles, all gadgets
python benchmarks/fuzz_files.py --headers 200 --pickles 50
"""

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save

from imprompt.adapter.checkpoint import load_adapter
from imprompt.core.errors import CheckpointError
from tests import hostile
from tests.unit.adapter.test_formats import ALL, built, narrow

SEEDS = ("ip-adapter_sd15", "ip-adapter-plus_sd15", "ip-adapter-faceid-plusv2_sd15", "xlabs", "sd3.5-large-ip-adapter")
MOST_SECONDS = 10.0  # a file
MEMORY_PER_BYTE = 4  # of a file, that reading it may take
MEMORY_ANYWAY = 128 * 2**20  # which the refusal of headers and instructions at their limits takes


class Harness:
    """Reads files and counts what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canary = folder / "it-ran"
        self.outcomes: dict[str, int] = {}
        self.slowest = (0.0, "")
        self.start_memory = peak_memory()
        self.largest = 0

    def read(self, name: str, content: bytes) -> str:
        """Read a file, and hold the outcome against the promises."""
        path = self.folder / name
        path.write_bytes(content.replace(b"CANARY", str(self.canary).encode()))
        self.largest = max(self.largest, len(content))
        start = time.process_time()  # so that a busy machine does not decide
        outcome = "read"
        try:
            load_adapter(path)  # which reads the header by itself first, as `read_spec` does
        except CheckpointError as error:
            outcome = "refused"
            text = str(error)
            assert path.name in text, f"the file is not named: {text}"
            assert "\n" not in text and len(text) < 700, f"no sentence: {text[:300]}"
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, (seconds, name))
        assert seconds < MOST_SECONDS, f"{name} took {seconds:.1f} s"
        assert not self.canary.exists(), f"{name} ran code"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        return outcome

    @property
    def memory(self) -> int:
        """Bytes that were taken beyond what the process had at the start."""
        return peak_memory() - self.start_memory

    def check_memory(self) -> None:
        """Hold what was taken against what was promised."""
        limit = MEMORY_ANYWAY + MEMORY_PER_BYTE * self.largest
        assert self.memory <= limit, f"{self.memory:,} bytes taken for files of at most {self.largest:,}"


def peak_memory() -> int:
    """Bytes that this process has ever had in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seeds() -> list[tuple[dict[str, torch.Tensor], bytes]]:
    """Good files: their tensors, and their bytes as safetensors."""
    adapters = [built(narrow(ALL[name])) for name in SEEDS]
    states = [adapter.state_dict() for adapter in adapters]
    metadata = [{"imprompt_spec": adapter.spec.to_json()} for adapter in adapters]
    return [(state, save(state, metadata=each)) for state, each in zip(states, metadata, strict=True)]


def sections(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """A flat state as the dictionaries of an official pickle."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        section, _, name = key.partition(".")
        made.setdefault(section, {})[name] = value
    return made


def fuzz_headers(harness: Harness, count: int, seed: int = 0) -> None:
    """Mutants of safetensors."""
    source = random.Random(seed)
    files = [content for _, content in seeds()]
    files += [
        hostile.join({k: v for k, v in hostile.split(each)[0].items() if k != "__metadata__"}, hostile.split(each)[1])
        for each in files
    ]
    for _ in range(count):
        harness.read("mutant.safetensors", hostile.mutate_safetensors(source.choice(files), source))


def fuzz_pickles(harness: Harness, count: int, seed: int = 0) -> None:
    """Mutants of pickles, of both formats."""
    source = random.Random(seed)
    states = [sections(state) for state, _ in seeds()]
    files = [hostile.pickled(state, legacy=legacy) for state in states for legacy in (False, True)]
    for _ in range(count):
        harness.read("mutant.bin", hostile.mutate_pickle(source.choice(files), source))


def fuzz_gadgets(harness: Harness) -> int:
    """What would run code or take memory without end: all of it is refused."""
    state = sections(seeds()[0][0])
    count = 0
    for name, call in hostile.calls(harness.canary).items():
        for legacy in (False, True):
            for content in ({**state, "extra": call}, {**state, "image_proj": {"proj.weight": call}}, call):
                assert harness.read("gadget.bin", hostile.pickled(content, legacy=legacy)) == "refused", name
                count += 1
    for name, content in hostile.bombs(state):
        assert harness.read("bomb.bin", content) == "refused", name
        count += 1
    return count


def report(harness: Harness, words: str, start: float) -> None:
    """Print one line."""
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(harness.outcomes.items()))
    print(
        f"{words:34} {outcomes:34} {time.monotonic() - start:7.1f} s, slowest {harness.slowest[0]:.2f} s, "
        f"memory +{harness.memory / 2**20:.0f} MiB, largest file {harness.largest / 2**20:.1f} MiB"
    )


def main() -> None:
    """Run all three and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--pickles", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for words, run in (
        (f"{options.headers:,} mutants of safetensors", lambda each: fuzz_headers(each, options.headers, options.seed)),
        (f"{options.pickles:,} mutants of pickles", lambda each: fuzz_pickles(each, options.pickles, options.seed)),
        ("gadgets and bombs", fuzz_gadgets),
    ):
        with tempfile.TemporaryDirectory() as folder:
            seeds()
            harness, start = Harness(Path(folder)), time.monotonic()
            run(harness)
            harness.check_memory()
            report(harness, words, start)
    print("no code ran, nothing crashed, every refusal named its file")


if __name__ == "__main__":
    main()
