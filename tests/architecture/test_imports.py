"""Parts know only what lies below them, and starting up loads nothing heavy."""

import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "numpy", "PIL")


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Which heavy packages a statement imports, in a process of its own."""
    program = f"{statement}; import sys; print(*sys.modules)"
    return set(run(sys.executable, "-c", program).split()) & set(HEAVY)


def test_the_import_contract() -> None:
    run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import imprompt") == set()


def test_an_image_prompt_needs_no_model_library() -> None:
    assert not loaded_by("from imprompt import ImagePrompt, ImpromptError") & {"diffusers", "transformers"}


def test_no_command_loads_anything_heavy_before_it_runs() -> None:
    modules = sorted(path.stem for path in (ROOT / "src/imprompt/cli").glob("*.py") if path.stem != "__init__")
    assert loaded_by("; ".join(f"import imprompt.cli.{module}" for module in modules)) == set()


def test_help_answers_at_once() -> None:
    """Measured in processor time, so that a busy machine does not decide."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(str(Path(sys.executable).with_name("imprompt")), "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    assert min(seconds() for _ in range(3)) < 0.5
