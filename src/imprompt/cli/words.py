"""What an error asks a caller to pass, as the options of the command line."""

import re

SAVED = 'a saved prompt (saved = "FILE" in a request file)'

# Longest first: what the library's messages name, and what a command takes in its place.
WORDS = (
    (r"face_encoder=FaceEncoder\.from_folder\(\.\.\.\)", "--faces FOLDER"),
    (r"ImagePrompt\(features=\.\.\.\)", SAVED),
    (r"\bfeatures=(?!\w)", SAVED),
    (r", or load the detector with a lower min_score", ""),
    (r"\bface_encoder=", "--faces"),
    (r"\btext_encoder=", "--text-encoder"),
    (r"\bsubtract=(?!\w)", "--subtract"),
    (r"\bimage_encoder='([^']*)'", r"--encoder \1"),
    (r"\bimage_encoder=", "--encoder"),
    (r"\b(part|variant|lora|guidance)='([^']*)'", r"--\1 \2"),
    (r"\b(part|variant|lora|guidance)=(?!\w)", r"--\1"),
    (r"(--[a-z-]+(?: [^\s,;]+)?) to attach\b", r"\1"),
    (r"(?<!\.)\bbad_samples\b", "--bad-samples"),
)


def as_options(message: str) -> str:
    """The message with options where it names arguments of Python."""
    for pattern, option in WORDS:
        message = re.sub(pattern, option, message)
    return message
