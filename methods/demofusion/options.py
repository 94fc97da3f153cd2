"""The options of the DemoFusion and MultiDiffusion adapters, with their defaults and what is wrong about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hibench.errors import SpecError

if TYPE_CHECKING:
    from methods.demofusion.denoise import Rules

__all__ = ["MULTI", "OPTIONS", "check", "rules", "scheduler_name"]

OPTIONS: dict[str, Any] = {  # option: default
    "compat": "paper",  # "official": as released, see COMPAT
    "progressive": True,  # every multiple of the native size; false: from the first to the last
    "skip_residual": True,  # mix in the noised upsampled latents
    "dilated": True,  # the global path of dilated sampling
    "stride": None,  # of the windows, in latents; None = half the native side
    "jitter": None,  # largest shift of a window, in latents; None = as compat has it; false = 0
    "crops": None,  # windows are told where they are; None = yes, for MultiDiffusion no
    "sigma": 1.0,  # of the blur before the dilated path, in latents at the first step
    "alpha": [3.0, 1.0, 1.0],  # exponents of the cosine weights: skip residual, dilated path, blur
    "guidance": 7.5,  # scale of classifier-free guidance; <= 1: without
    "guidance_rescale": 0.0,  # how far a guided prediction goes back to the spread of the conditional one
    "eta": 0.0,  # noise of DDIM and TCD
    "negative_prompt": None,  # one text for all images; None = none
    "image": None,  # start from this picture (a file) instead of from a native sample
    "max_windows": 16,  # windows in the network at once; None = all. The images are the same
    "max_tiles": 8,  # tiles in the decoder at once; None = all. The images are the same
    "tiled_decode": True,  # beyond the native size; false: as a whole (other pixels, much less work)
    "view_batch": 16,  # with compat: official: batches whose position the index error depends on
}
# What `compat` changes:      official (PRIS-CV/DemoFusion 5024487)                    paper (the default)
# scheduler (if none named)   the pipeline's own one                                    DDIM with its noise schedule
# scaling of the inputs       by the index that step() has moved on already (Euler)     by the index of the step
# width of the blur           2s - 1                                                    4s - 3
# largest shift of a window   (native - stride) / 4                                     native / 16
# crops told to windows       in the frame with its padding                             on the canvas, not negative
# shifts                      Python's random after random.seed(seed)                   uniform, from the seed's own stream
# MultiDiffusion at borders   no window where the stride does not end there: zeros      a last window at the border
MULTI = (
    "compat",
    "stride",
    "crops",
    "guidance",
    "guidance_rescale",
    "eta",
    "negative_prompt",
    "max_windows",
    "max_tiles",
    "tiled_decode",
)  # what MultiDiffusion has of them
SWITCHES = ("progressive", "skip_residual", "dilated", "tiled_decode")
COMPAT = ("paper", "official")


def check(options: dict[str, Any], name: str) -> None:
    """SpecError for everything about complete options that can be wrong before weights are read."""

    def fail(key: str, what: str) -> None:
        raise SpecError(f"{name}: option {key}: {options[key]!r} is not {what}")

    if options["compat"] not in COMPAT:
        fail("compat", f"one of {', '.join(COMPAT)}")
    for key in SWITCHES:
        if type(options[key]) is not bool:
            fail(key, "true or false")
    if options["crops"] is not None and type(options["crops"]) is not bool:
        fail("crops", "true or false")
    for key in ("stride", "max_windows", "max_tiles", "view_batch"):
        value = options[key]
        if not (value is None and key != "view_batch") and (type(value) is not int or value < 1):
            fail(key, "a whole number >= 1")
    jitter = options["jitter"]
    if jitter is not None and jitter is not False and (type(jitter) is not int or jitter < 0):
        fail("jitter", "a whole number of latents >= 0, or false")
    for key, least in (("sigma", 0.0), ("guidance", 0.0), ("guidance_rescale", 0.0), ("eta", 0.0)):
        if not _number(options[key]) or options[key] < least or (key == "sigma" and options[key] == 0):
            fail(key, "a number > 0" if key == "sigma" else "a number >= 0")
    alpha = options["alpha"]
    if not isinstance(alpha, (list, tuple)) or len(alpha) != 3 or not all(_number(a) and a >= 0 for a in alpha):
        fail("alpha", "a list of three numbers >= 0")
    for key in ("negative_prompt", "image"):
        if options[key] is not None and not isinstance(options[key], str):
            fail(key, "a text")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def scheduler_name(options: dict[str, Any]) -> str | None:
    """The scheduler asked for, or that of `compat`; None = the pipeline's own."""
    return options["scheduler"] or ("ddim" if options["compat"] == "paper" else None)


def rules(options: dict[str, Any], window: int, factor: int, multi: bool = False) -> Rules:
    """The rules of a run for a native side of `window` latents; `multi`: of MultiDiffusion. SpecError for a stride that leaves
    gaps."""
    from methods.demofusion.denoise import Rules

    official, stride = options["compat"] == "official", options["stride"] or max(1, window // 2)
    if stride > window:
        raise SpecError(f"option stride: {stride} latents are more than a window of {window} and leave gaps; make it smaller")
    room = (window - stride) // 2  # two neighbours that move apart still touch
    reach = min(room, (window - stride) // 4 if official else window // 16)
    if options["jitter"] is not None:
        reach = int(options["jitter"])
        if reach > room:
            raise SpecError(
                f"option jitter: {reach} latents leave gaps between windows of {window} at a stride of {stride}; "
                f"at most {room} do not"
            )
    crops = options["crops"] if options["crops"] is not None else not multi
    alpha = (float(options["alpha"][0]), float(options["alpha"][1]), float(options["alpha"][2]))
    return Rules(
        window,
        factor,
        stride,
        0 if multi else reach,
        alpha,
        float(options["sigma"]),
        options["skip_residual"],
        options["dilated"],
        "2s-1" if official else "4s-3",
        crops,
        padded_frame=official,
        cover=not (multi and official),
        official_index=options["view_batch"] if official and not multi else None,
    )
