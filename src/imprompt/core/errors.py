"""The errors that a caller may want to catch.

    ImpromptError
    ├── CheckpointError      an adapter file cannot be read or written
    │   └── UnknownFormat    it can be read, and holds no adapter we know
    ├── EncoderMismatch      features of another encoder, or of another layer, than the adapter was trained on
    ├── HostMismatch         the adapter does not fit this denoiser
    ├── PromptError          an image prompt that makes no sense
    ├── ImageError           a picture or mask that cannot be used
    │   └── FaceError        a picture without the face that is wanted
    ├── ConditioningError    resolved tensors that do not fit each other or the batch
    ├── BundleError          the embedded model is missing or damaged
    └── DownloadError        weights that are neither here nor reachable

Every message is one sentence a user can act on: the value met, the value expected, what to do.
"""


class ImpromptError(Exception):
    """Anything that went wrong and that a user can put right."""


class CheckpointError(ImpromptError):
    """An adapter file cannot be read or written."""


class UnknownFormat(CheckpointError):
    """A readable file that holds no adapter of a known layout."""


class EncoderMismatch(ImpromptError):
    """Features of another encoder, or of another layer, than the adapter was trained on."""


class HostMismatch(ImpromptError):
    """The adapter does not fit the denoiser it is attached to."""


class PromptError(ImpromptError):
    """An image prompt with a value that makes no sense."""


class ImageError(ImpromptError):
    """A picture or mask that cannot be used."""


class FaceError(ImageError):
    """A picture without the face that is wanted; whoever averages over several pictures may pass over one."""


class ConditioningError(ImpromptError):
    """Resolved tensors that do not fit each other, the batch or the host."""


class BundleError(ImpromptError):
    """The embedded model is missing or damaged."""


class DownloadError(ImpromptError):
    """Weights that are neither on this machine nor reachable."""


MAX_REASON = 200  # letters


def first_line(error: BaseException) -> str:
    """Why something failed, as a phrase for a sentence: the first line of a message, or an error's kind if it has none.

    Args:
        error: of any library, whose message may have many lines.
    """
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line[:MAX_REASON].rstrip(". ")
