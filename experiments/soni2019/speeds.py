"""Soni et al. (2019), tables 1 and 2, as Markdown: time per epoch, speed beside the language model, and latency."""

from typing import Any

from syscall_lm.experiments.soni2019 import settings
from syscall_lm.models import encoder_decoder, lstm


def times(result: dict[str, Any], gpu: dict[str, Any] | None = None) -> list[str]:
    """Tables 1 and 2 (with a GPU's times, if there are any), speed beside the language model, and streams' latency."""
    measured_on = gpu["environment"]["device"] if gpu else "GPU"
    of_gpu = gpu["rows"] if gpu else []
    on_gpu = {(row["model"], row["length"]): f"{row['seconds_per_epoch']:.2f}" for row in of_gpu}
    device = device_of(result)
    lines = [
        "## Tables 1 and 2: time per epoch",
        "",
        f"One model, {result['windows']:,} windows of {result['archive']}, minibatches of "
        f"{result['minibatch_windows']}, H = {result['cells']}: the median of {result['rounds']} rounds of "
        f"{result['steps']} steps, in which all take turns, times the steps of an epoch, in seconds. The paper's times "
        "are for some 140,000 windows, on unknown hardware and with unknown H. A GPU's times are made by the same "
        "command with --output=RESULTS/gpu (experiments/soni2019/epoch_time.py).",
        "",
    ]
    lengths = sorted({row["length"] for row in result["rows"]})
    lines += [
        "| model | on | " + " | ".join(f"L = {length}" for length in lengths) + " |",
        "|---" * (len(lengths) + 2) + "|",
    ]
    for model in settings.MODELS:
        seconds = {row["length"]: row["seconds_per_epoch"] for row in result["rows"] if row["model"] == model}
        paper = settings.PAPER_MS_PER_EPOCH[model]
        lines += [
            f"| {model} | {device} | " + " | ".join(f"{seconds[length]:.2f}" for length in lengths) + " |",
            f"| | {measured_on} | {' | '.join(on_gpu.get((model, length), 'not measured') for length in lengths)} |",
            "| | the paper's | "
            + " | ".join(f"{paper[length] / 1000:.2f}" if length in paper else "" for length in lengths)
            + " |",
        ]
    lines += [
        "",
        "### Calls learned from per second, and latency",
        "",
        "Calls that training predicts per second, beside a language model of the same H (one layer, no dropout) with "
        "as many calls a minibatch, in the same rounds; the ratio is the median over rounds, with a 95 % interval over "
        "them. Latency: from a call to its answer in a stream with carried state, in a watch that judges windows, and "
        "if the call's whole window is read anew: median (lowest to highest median of a round) / 99 %.",
    ]
    for one in (result, gpu) if gpu else (result,):
        lines += ["", f"On {device_of(one)}:", "", *speeds(one)]
    return [*lines, "", costs(result), "", claimed_time(result), *(["", claimed_time(gpu)] if gpu else []), ""]


def device_of(result: dict[str, Any]) -> str:
    """What was measured on."""
    device = result["environment"]["device"]
    return f"{device} ({result['cores']} cores)" if device == "cpu" else device


def speeds(result: dict[str, Any]) -> list[str]:
    """Training beside the language model, and latency, on one device."""
    lines = [
        "| model | L | parameters | calls/s | language model, calls/s | ratio | stream, µs | watch, µs | "
        "whole window, µs |",
        "|---" * 9 + "|",
    ]
    for row in result["rows"]:
        ours, theirs = row["calls_per_second"], row["language_model_calls_per_second"]
        ratio, low, high = row["language_model_ratio"]
        answers = (latency(row.get(f"{name}_microseconds")) for name in ("latency", "watch", "whole_window"))
        lines.append(
            f"| {row['model']} | {row['length']} | {row['parameters']:,} | {ours:,.0f} | {theirs:,.0f} | "
            f"{ratio:.2f} ({low:.2f} to {high:.2f}) | {' | '.join(answers)} |"
        )
    default = result["default_language_model"]
    return [
        *lines,
        "",
        f"A language model of the same H with its default recipe (4,096 calls a minibatch, dropout "
        f"{default['dropout']}) learns {default['calls_per_second']:,.0f} calls/s.",
        "",
        goal(result),
        "",
        streams(result),
    ]


def claimed_time(result: dict[str, Any]) -> str:
    """Whether the encoder-decoder takes less time to train than the autoencoder, as the paper concludes."""
    seconds = {(row["model"], row["length"]): row["seconds_per_epoch"] for row in result["rows"]}
    lengths = sorted({length for _, length in seconds})
    first, second = settings.MODELS
    told = ", ".join(f"L = {n}: {seconds[first, n]:.2f} s against {seconds[second, n]:.2f} s" for n in lengths)
    verdict = holds(all(seconds[first, n] < seconds[second, n] for n in lengths))
    return (
        "The paper concludes that the encoder-decoder takes less time to train than the autoencoder: on "
        f"{device_of(result)} that {verdict} for an epoch ({told}). How long a whole training takes depends on its "
        "epochs, too, and stands in the column time above."
    )


def streams(result: dict[str, Any]) -> str:
    """Where a live call takes longer than reading its window anew, which is what carried state is to save."""
    compared = slower = 0
    named = []
    for row in result["rows"]:
        for name, way in (("latency", "stream"), ("watch", "watch")):
            live, whole = (row.get(f"{kind}_microseconds") for kind in (name, "whole_window"))
            if live and whole:
                compared += 1
                if live["median"] > whole["median"]:
                    slower += 1
                    named.append(f"{row['model']}, L = {row['length']} ({way})")
    if not slower:
        return (
            "A live call takes less time than its whole window read anew, in a stream and in a watch, for all models."
        )
    where = "for all models" if slower == compared else f"for {'; '.join(named)}"
    return (
        f"A live call takes more time than its whole window read anew {where}: there, dispatching a program takes "
        "longer than what it calculates."
    )


def latency(measured: dict[str, Any] | None) -> str:
    """Median, the range of the rounds' medians, and the 99th percentile, in microseconds."""
    if measured is None:
        return ""
    rounds = measured.get("rounds")
    between = f" ({min(rounds):.0f} to {max(rounds):.0f})" if rounds else ""
    return f"{measured['median']:.0f}{between} / {measured['99 %']:.0f}"


def goal(result: dict[str, Any]) -> str:
    """Whether the encoder-decoder is as fast to train per call as the language model."""
    rows = [row for row in result["rows"] if row["model"] == settings.MODELS[0]]
    told: dict[str, list[str]] = {"met": [], "missed": [], "neither met nor missed for certain": []}
    for row in rows:
        ratio, low, high = row["language_model_ratio"]
        verdict = "met" if low >= 1 else "missed" if high < 1 else "neither met nor missed for certain"
        told[verdict].append(f"{row['length']} ({ratio:.2f})")
    text = "The goal, an encoder-decoder that is as fast to train per call as the language model (ratio 1), is "
    return (
        text
        + " and ".join(f"{verdict} for L = {', '.join(lengths)}" for verdict, lengths in told.items() if lengths)
        + "."
    )


def costs(result: dict[str, Any]) -> str:
    """What a call costs either model to learn."""
    rows = [row for row in result["rows"] if row["model"] == settings.MODELS[0]]
    text = (
        "For each call the encoder-decoder runs two LSTM steps, one after the other; the language model runs one. On "
        "CPUs equal windows of a minibatch are computed once, which the language model, whose states go on, cannot do"
    )
    together, size = rows[0].get("together", 1), result["minibatch_windows"]
    if together > 1:
        text += f"; and up to {together} equal ones come into the same minibatch on purpose"
    if "lanes_a_minibatch" in rows[0]:
        text += (
            f". So of {size} windows "
            + ", ".join(f"{row['lanes_a_minibatch']:.0f} (L = {row['length']})" for row in rows)
            + " are computed, and the ratio is this good where an archive repeats itself as this one does"
        )
    text += "."
    if (v := result.get("vocabulary_size")) is None:
        return text
    h = result["cells"]
    language_model = lstm.Shape(v, h)
    own = encoder_decoder.Shape(v, rows[0]["length"], h).flops_per_call
    rows_read = result["calls_that_occur"] + 1  # and GO
    minibatches = [result["minibatch_windows"] * row["length"] for row in rows]
    folding = [16 * h * h * rows_read / calls / 1000 for calls in minibatches]
    folding_all = [8 * h * h * (v + 1) / calls / 1000 for calls in minibatches]
    more, its_more = (", ".join(f"{cost:.0f}" for cost in costs) for costs in (folding, folding_all))
    return (
        f"{text} At H = {h}, V = {v} a call costs {own / 1000:.0f} kFLOP to score, the language model's "
        f"{language_model.flops_per_call / 1000:.0f}. To train them (forward) it is {own / 1000:.0f} and, to fold the "
        f"embedding of the {result['calls_that_occur']} calls that occur into both layers once a minibatch, {more} "
        f"more for L = {', '.join(str(row['length']) for row in rows)}; the language model folds all {v} calls into "
        f"its one layer, {its_more} more."
    )


def holds(true: bool) -> str:
    """A verdict in words."""
    return "holds" if true else "does not hold"
