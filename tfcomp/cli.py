"""The command line: one sub-command for each thing that is done with files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl.flags import FlagValues

from tfcomp.errors import TfcompError

_LOGS_WANTED = "TF_CPP_MIN_LOG_LEVEL" in os.environ
# Before TensorFlow is imported, which only the sub-commands do: `--help` is to answer at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

USAGE_ERROR = 2
INTERRUPTED = 130

Handler = Callable[[FlagValues, list[str]], None]


@dataclasses.dataclass(frozen=True)
class Command:
    """A sub-command: what it takes, what it is for, its flags and what it does."""

    name: str
    arguments: str
    summary: str
    details: str
    define: Callable[[FlagValues], None]
    run: Handler


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 a user's mistake, 130 interrupted."""
    if argv is None:
        _quiet()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(arguments)
    except (TfcompError, flags.Error) as error:
        print(f"tfcomp: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print(
            "tfcomp: interrupted. Files that were finished are whole; a run goes on with --resume.",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader has closed, as `head` does; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _quiet() -> None:
    """Keeps TensorFlow's native chatter off the terminal; Python's own errors still show.

    Some of it is printed before any setting is read, so that only closing its file descriptor
    helps. With TF_CPP_MIN_LOG_LEVEL set by the user, all of it shows.
    """
    if _LOGS_WANTED:
        return
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        from tfcomp.version import __version__

        print(f"tfcomp {__version__}")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Valid are: {', '.join(COMMANDS)}."
        raise TfcompError(f"unknown command {name!r}. {hint}")
    command = COMMANDS[name]
    values = FlagValues()
    command.define(values)
    if any(argument in ("-h", "--help") for argument in rest):
        print(_help(command, values))
        return
    positional = values(["tfcomp", *rest])[1:]
    command.run(values, positional)


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS.values())
    lines = [f"  {c.name:<{width}}  {c.summary}" for c in COMMANDS.values()]
    return "\n".join(
        [
            "tfcomp: make Keras models small and fast, and see what it bought",
            "",
            "usage: tfcomp COMMAND [arguments] [--flags]",
            "",
            *lines,
            "",
            "tfcomp COMMAND --help tells more. Exit codes: 0 done, 2 a mistake in what was asked,",
            "130 interrupted.",
        ]
    )


def _help(command: Command, values: FlagValues) -> str:
    usage = " ".join(["tfcomp", command.name, command.arguments, "[--flags]"]).replace("  ", " ")
    lines = [f"usage: {usage}", "", command.summary[0].upper() + command.summary[1:] + "."]
    if command.details:
        lines += ["", *command.details.splitlines()]
    lines += ["", "flags:"]
    for name in sorted(values):
        flag = values[name]
        default = "" if flag.default in (None, False) else f" (default: {flag.default})"
        shown = f"--{name}" if flag.boolean else f"--{name}={_metavar(flag)}"
        # absl puts the choices in front of an enum's help; they stand in `shown` already.
        text = flag.help.split(">: ", 1)[-1] + default
        lines += [f"  {shown:<22}{text}"] if len(shown) < 22 else [f"  {shown}", f"{'':24}{text}"]
    lines.append(f"  {'--help':<22}this text")
    return "\n".join(lines)


def _metavar(flag: Any) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return "|".join(choices)
    return {"int": "N", "float": "X"}.get(flag.flag_type(), "TEXT")


def _one_argument(positional: list[str], what: str) -> str:
    if len(positional) != 1:
        raise TfcompError(f"expected one {what}. Received: {' '.join(positional) or 'none'}.")
    return positional[0]


def _no_argument(positional: list[str]) -> None:
    if positional:
        raise TfcompError(f"expected no arguments but flags. Received: {' '.join(positional)}.")


def _show(value: Any, as_json: bool) -> None:
    """Prints the result: JSON for a program, a table for a person."""
    if as_json:
        print(json.dumps(value.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(value)


def _define_run(values: FlagValues) -> None:
    flags.DEFINE_string("out", "run", "folder for the results", flag_values=values)
    flags.DEFINE_boolean("resume", False, "go on after the last finished stage", flag_values=values)


def _define_demo(values: FlagValues) -> None:
    _define_run(values)
    values.set_default("out", "demo")


def _demo(values: FlagValues, positional: list[str]) -> None:
    _no_argument(positional)
    from tfcomp import recipes

    _compress(recipes.demo(), values)


def _compress_file(values: FlagValues, positional: list[str]) -> None:
    path = _one_argument(positional, "recipe file, such as recipe.yaml")
    from tfcomp import recipes

    _compress(recipes.load_recipe(path), values)


def _compress(recipe: Any, values: FlagValues) -> None:
    from rich.console import Console

    from tfcomp import recipes, reporting

    report = recipes.run(recipe, values.out, resume=values.resume, progress=True)
    console = Console()
    console.print(reporting.stage_table(report))
    console.print(f"report: {pathlib.Path(values.out) / 'report.html'}")


def _define_convert(values: FlagValues) -> None:
    flags.DEFINE_string(
        "out", None, "the file to write; MODEL.tflite by default", flag_values=values
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "float16", "dynamic", "int8", "int16x8"],
        "numbers of the file",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "target", "tflite", ["tflite", "edgetpu"], "what will run the file", flag_values=values
    )
    flags.DEFINE_string(
        "calibration",
        None,
        "inputs, .npy or .npz, that set the ranges of a float model: int8, int16x8",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "io_dtype", None, ["float32", "int8"], "numbers of inputs and outputs", flag_values=values
    )
    flags.DEFINE_boolean(
        "allow_float_ops", False, "accept a file with float ops where int8 was asked",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)


def _convert(values: FlagValues, positional: list[str]) -> None:
    model_path = _one_argument(positional, "model, a .keras file")
    from tfcomp import conversion, datasets, profiling

    model = profiling.load_keras(model_path)
    inputs = datasets.load_inputs(values.calibration) if values.calibration else None
    artifact = conversion.convert(
        model,
        values.out or str(pathlib.Path(model_path).with_suffix(".tflite")),
        dtype=values.dtype,
        target=values.target,
        calibration=inputs,
        io_dtype=values.io_dtype,
        allow_float_ops=values.allow_float_ops,
    )
    if values.json:
        mapping = {"edgetpu": artifact.edgetpu.to_dict()} if values.target == "edgetpu" else {}
        print(json.dumps({**artifact.audit.to_dict(), **mapping}, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(artifact.audit, *([artifact.edgetpu] if values.target == "edgetpu" else []))


def _define_json(values: FlagValues) -> None:
    flags.DEFINE_boolean("json", False, "print JSON", flag_values=values)


def _inspect(values: FlagValues, positional: list[str]) -> None:
    path = _one_argument(positional, ".keras or .tflite file")
    from tfcomp import profiling

    _show(profiling.inspect_file(path), values.json)


def _define_benchmark(values: FlagValues) -> None:
    flags.DEFINE_integer("threads", 1, "threads of the interpreter", 1, flag_values=values)
    flags.DEFINE_integer("runs", 200, "timed runs of each file", 1, flag_values=values)
    _define_json(values)


def _benchmark(values: FlagValues, positional: list[str]) -> None:
    if not positional:
        raise TfcompError("expected one .tflite file or more. Received: none.")
    from rich.console import Console

    from tfcomp import reporting, runtime

    measured = runtime.latencies(positional, threads=values.threads, runs=values.runs)
    if values.json:
        print(json.dumps([latency.to_dict() for latency in measured], indent=2))
        return
    Console().print(reporting.latency_table(measured))


def _define_report(values: FlagValues) -> None:
    flags.DEFINE_boolean("json", False, "print the report as JSON", flag_values=values)


def _report(values: FlagValues, positional: list[str]) -> None:
    folder = pathlib.Path(_one_argument(positional, "folder of a run"))
    from rich.console import Console

    from tfcomp import recipes, reporting

    report = recipes.read_report(folder)
    if values.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    reporting.write_html(report, folder / "report.html")
    console = Console()
    console.print(reporting.stage_table(report))
    console.print(f"report: {folder / 'report.html'}")


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "demo",
            "",
            "train, distil, shrink, quantise and convert a model for packaged photographs",
            "Takes some 5 minutes on 2 cores and writes models, files and report.html to --out.",
            _define_demo,
            _demo,
        ),
        Command(
            "compress",
            "RECIPE",
            "do what a recipe file says, stage by stage, and report",
            "A recipe is YAML: data, and stages of the kinds train, distill, shrink, prune,\n"
            "quantize and convert. Models may be architectures or .keras files of your own.\n"
            "The demo's recipe, to start from: tfcomp/recipes/demo.yaml in the package.",
            _define_run,
            _compress_file,
        ),
        Command(
            "convert",
            "MODEL",
            "convert a .keras to a .tflite, and check that it is what was asked",
            "The file is read back; where it is not what was asked, the ops are named and nothing\n"
            "is written.",
            _define_convert,
            _convert,
        ),
        Command(
            "inspect",
            "FILE",
            "tell what is in a .keras or a .tflite",
            "Layers, parameters, non-zeros, MACs and bytes; ops, types, what falls to float and\n"
            "what the Edge TPU would map.",
            _define_json,
            _inspect,
        ),
        Command(
            "benchmark",
            "FILE...",
            "measure the latency of .tflite files, interleaved",
            "Median and 90th percentile in milliseconds on this machine.",
            _define_benchmark,
            _benchmark,
        ),
        Command(
            "report",
            "RUN",
            "make report.html again from a run's report.json",
            "",
            _define_report,
            _report,
        ),
    )
}


if __name__ == "__main__":
    main()
