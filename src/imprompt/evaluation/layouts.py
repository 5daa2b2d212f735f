"""How the pictures of a protocol lie on disk, and which cases they make."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from imprompt.evaluation.errors import EvaluationError
from imprompt.evaluation.items import Case

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def read_folder(folder: Path, prompts: tuple[str, ...]) -> list[Case]:
    """Pictures of a folder, each a subject of its own; `name.txt` beside one is its caption.

    Without prompts a picture is followed alone and compared with its caption; with prompts, with each of them.

    Raises:
        EvaluationError: there are no pictures, two of one name, or a prompt with a place for a subject's name.
    """
    _check_places(prompts)
    cases = []
    for path in _subjects_in(folder):
        beside = path.with_suffix(".txt")
        caption = _text(beside).strip() if beside.is_file() else ""
        cases += _cases(path.stem, (path,), prompts, caption)
    return cases


def read_subjects(folder: Path, prompts: tuple[str, ...]) -> list[Case]:
    """A folder a subject, with its pictures inside (DreamBench's layout), each followed with every prompt.

    `{subject}` in a prompt becomes the folder's name, in words. The first picture by name is the reference.

    Raises:
        EvaluationError: there are no subjects, no prompts, or a prompt with another place.
    """
    _check_places(prompt.replace("{subject}", "") for prompt in prompts)
    if not prompts:
        raise EvaluationError("a protocol of subjects and prompts has no prompts; give some with --prompt or --prompts")
    subjects = [path for path in _seen_in(folder) if path.is_dir()]
    if not subjects:
        raise EvaluationError(f"'{folder}' holds no folders; this layout wants one for each subject")
    cases = []
    for subject in subjects:
        name = subject.name.replace("_", " ").replace("-", " ")
        worded = tuple(prompt.replace("{subject}", name) for prompt in prompts)
        cases += _cases(subject.name, tuple(pictures_in(subject)[:1]), worded, "")
    return cases


def read_style_content(folder: Path, prompts: tuple[str, ...]) -> list[Case]:
    """`style/` with pictures whose style is kept and `content.txt` with a subject a line: every style with every one.

    Raises:
        EvaluationError: a part is missing, or a prompt has a place for a subject's name.
    """
    _check_places(prompts)
    contents = prompts or tuple(line.strip() for line in _text(folder / "content.txt").splitlines() if line.strip())
    if not contents:
        raise EvaluationError(f"'{folder / 'content.txt'}' is empty; this layout wants a subject a line")
    return [
        Case(
            subject=style.stem,
            prompt_name=f"p{number:02d}",
            references=(style,),
            prompt=content,
            caption=content,
            style=style,
        )
        for style in _subjects_in(folder / "style")
        for number, content in enumerate(contents)
    ]


def read_coco(folder: Path, prompts: tuple[str, ...]) -> list[Case]:
    """COCO 2017 validation: `val2017/` and `annotations/captions_val2017.json`.

    Of a picture's five captions the one with the lowest number counts; the paper does not say which did.

    Raises:
        EvaluationError: a part is missing or damaged, or a prompt has a place for a subject's name.
    """
    _check_places(prompts)
    try:
        said = json.loads(_text(folder / "annotations" / "captions_val2017.json"))
        first: dict[int, str] = {}
        for row in sorted(said["annotations"], key=lambda row: row["id"]):
            first.setdefault(row["image_id"], row["caption"].strip())
        files = {row["id"]: row["file_name"] for row in said["images"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"'{folder}/annotations/captions_val2017.json' is not COCO's: {error!r}") from error
    if not files:
        raise EvaluationError(f"'{folder}/annotations/captions_val2017.json' lists no images; take COCO's own file")
    cases = []
    for number in sorted(files):
        cases += _cases(str(number), (_existing(folder / "val2017" / files[number]),), prompts, first.get(number, ""))
    return cases


def read_dreambench_plus(folder: Path, prompts: tuple[str, ...]) -> list[Case]:
    """DreamBench++'s own folders: `src_image/ID/I_J.jpg` with `text/ID/I_J.txt`; of each prompt I the first J.

    Raises:
        EvaluationError: a part is missing.
    """
    if prompts:
        raise EvaluationError("DreamBench++ brings its own prompts, in text/; leave --prompt out, or take dreambench")
    cases = []
    for subject in (path for path in _seen_in(folder / "text") if path.is_dir()):
        first: dict[str, Path] = {}
        for file in (path for path in _seen_in(subject) if path.match("*_*.txt")):
            first.setdefault(file.stem.partition("_")[0], file)
        images = {path.stem: path for path in _subjects_in(folder / "src_image" / subject.name)}
        for number, file in first.items():
            if file.stem not in images:
                raise EvaluationError(f"'{file}' has no picture of its name in src_image/{subject.name}")
            text = _text(file).strip()
            reference = (images[file.stem],)
            cases.append(
                Case(subject=subject.name, prompt_name=f"p{number}", references=reference, prompt=text, caption=text)
            )
    if not cases:
        raise EvaluationError(f"'{folder}/text' holds no ID/I_J.txt; this layout wants a text for each picture")
    return cases


Reader = Callable[[Path, tuple[str, ...]], list[Case]]
LAYOUTS: dict[str, Reader] = {
    "folder": read_folder,
    "subjects": read_subjects,
    "style-content": read_style_content,
    "coco": read_coco,
    "dreambench-plus": read_dreambench_plus,
}


def pictures_in(folder: Path) -> list[Path]:
    """Pictures of a folder, by name.

    Raises:
        EvaluationError: there is no such folder, or no picture in it.
    """
    found = [path for path in _seen_in(folder) if path.suffix.lower() in PICTURES]
    if not found:
        raise EvaluationError(f"'{folder}' holds no pictures ({', '.join(PICTURES)}); give a folder that does")
    return found


def _seen_in(folder: Path) -> list[Path]:
    """What a folder holds, by name, but what begins with a dot: that is a system's own and no user's."""
    return sorted(path for path in _folder(folder).iterdir() if not path.name.startswith("."))


def _subjects_in(folder: Path) -> list[Path]:
    """Pictures of a folder whose names without the ending are those of subjects, and therefore one each."""
    known: dict[str, Path] = {}
    for path in pictures_in(folder):
        if path.stem in known:
            raise EvaluationError(
                f"'{known[path.stem].name}' and '{path.name}' in '{folder}' would both be the subject {path.stem!r}; "
                "rename one"
            )
        known[path.stem] = path
    return list(known.values())


def _cases(subject: str, references: tuple[Path, ...], prompts: tuple[str, ...], caption: str) -> list[Case]:
    """A case for each prompt; without prompts the image alone, measured against its caption."""
    pairs: list[tuple[str, str]] = [(prompt, prompt) for prompt in prompts] or [("", caption)]
    return [
        Case(subject=subject, prompt_name=f"p{number:02d}", references=references, prompt=prompt, caption=compared)
        for number, (prompt, compared) in enumerate(pairs)
    ]


def _check_places(prompts: Iterable[str]) -> None:
    """Refuse a prompt with a place that nothing fills, which would be drawn as it stands."""
    places = [place for prompt in prompts for place in re.findall(r"{.*?}", prompt)]
    if places:
        raise EvaluationError(
            f"a prompt has the place {places[0]!r}, which nothing fills; only the protocols dreambench and sweep fill "
            "{subject}, with the name of a subject's folder"
        )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise EvaluationError(f"there is no '{path}', which this layout wants; check the path, or put it there")
    return path


def _folder(path: Path) -> Path:
    if not _existing(path).is_dir():
        raise EvaluationError(f"'{path}' is a file; this layout wants a folder there")
    return path


def _text(path: Path) -> str:
    try:
        return _existing(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EvaluationError(f"'{path}' is no text in UTF-8; save it as such") from None
