"""Verbs that train, or show what was trained."""

from hf_cyclprune.files import check_writable
from hf_cyclprune.methods import METHODS, Plan
from hf_cyclprune.verbs.registry import argument, extra, verb


@verb()
def _glue(flags: list[str]) -> None:
    """Fine-tune a model on a task of GLUE, pruned or not."""
    with extra("glue"):
        from hf_cyclprune.glue.flags import parse_flags
        from hf_cyclprune.glue.run import run_glue
    run_glue(*parse_flags(flags))


@verb()
def _methods() -> None:
    """List the named methods, what they do, and their settings."""
    for name, method in METHODS.items():
        paper = f" ({method.paper.short}, {method.paper.url})" if method.paper is not None else ""
        settings = ", ".join(f"{key}={value!r}" for key, value in method.settings.items())
        print(f"{name}: {method.title}{paper}")
        print(f"  sparsity: {method.formula}")
        if method.finding is not None:
            print(f"  found: {method.finding}")
        print(f"  settings: {settings or 'the defaults'}\n")
    defaults = ", ".join(f"{key}={value!r}" for key, value in vars(Plan()).items())
    print(f"Other settings, in every method: {defaults}")


@verb(
    argument("runs", metavar="RUN", nargs="+", help="output_dir of a run"),
    argument("--output_dir", default=".", help="folder for the pictures (default: %(default)s)"),
)
def _plot(runs: list[str], output_dir: str) -> None:
    """Draw pictures of one run, or one that compares several."""
    from hf_cyclprune.pictures.plots import plot_runs  # its error names the extra

    check_writable("output_dir", output_dir)
    for path in plot_runs(runs, output_dir):
        print(path)


@verb(argument("--output_dir", help="keep the pruned model here (default: do not keep it)"))
def _demo(output_dir: str | None) -> None:
    """Prune a small BERT on a small task, without a network."""
    with extra("demo"):
        from hf_cyclprune.demo.run import run_demo
    if output_dir is not None:
        check_writable("output_dir", output_dir)
    run_demo(output_dir)
