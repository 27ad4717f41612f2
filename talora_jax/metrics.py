"""Which way a metric is better, by the last part of its name. What is here needs no JAX."""

SIGNS = {
    **dict.fromkeys(("abs_err", "rel_err", "rmse", "mean", "median"), -1),
    **dict.fromkeys(("miou", "pixel_acc", "miou_max", "max_f", "ods_f", "ois_f"), 1),
    **dict.fromkeys(("within_11.25", "within_22.5", "within_30"), 1),
    **dict.fromkeys(("picked", "best", "single"), 1),  # IoUs of prompts' answers
}


def sign(name: str) -> int | None:
    """1 where higher is better, -1 where lower is; None where neither, as of a threshold.

    Args:
      name: a metric's, with the task's or without: depth/pooled/rmse, or pooled/rmse.
    """
    if "/iou/" in f"/{name}":  # of one class, whatever it is called
        return 1
    return SIGNS.get(name.rpartition("/")[2])
