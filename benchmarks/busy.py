"""How much a scan and a merge suffer from other work on the machine: `python benchmarks/busy.py`.

A scan of the embedded pair in a resident process, and a merge of 302 MB, each alone and beside processes that do
nothing but compute. Run it on an otherwise idle machine. The number of threads is what plam-eval takes by itself, and
`--threads` of torch for comparison (its own default is one per core).

Prints a Markdown table: median seconds, and their ratio to the quiet time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib import resources
from pathlib import Path

import measured

SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # until this process ends, however


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """`number` processes that keep a core busy each."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(number)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def child(limit: int, threads: int) -> None:
    """Loads everything, then works each time a line with a number of busy processes comes in.

    Args:
        limit: documents of each scanned task.
        threads: of torch; 0 for as many as plam-eval takes by itself.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from merge import Decoder, write  # beside this file
    from safetensors.torch import load_file

    from plam_eval.demo.hub import write_hub
    from plam_eval.evaluation import scan
    from plam_eval.harness.evaluate import make_model
    from plam_eval.merging.merge import merge_in_place
    from plam_eval.spec import load_spec

    layers = 9
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_hub(folder / "suite", documents_per_task=max(30, limit))
        os.chdir(folder / "suite")
        pair = str(resources.files("plam_eval.demo") / "pair" / "mllm")
        model = make_model("plam_llava", {"pretrained": pair, "device_map": "cpu"})
        if threads:
            torch.set_num_threads(threads)
        folders = [write(folder / role, layers, seed) for seed, role in enumerate(("mllm", "base"))]
        module = Decoder(layers)
        spec = load_spec(None, {"base": str(folders[1]), "layers": f"0:{layers}"})
        module.load_state_dict(load_file(folders[0] / "model.safetensors"))
        print("ready", torch.get_num_threads(), file=answers, flush=True)
        for number, _ in enumerate(sys.stdin):
            started = time.perf_counter()
            scan.scan(model, ["pope", "mmstar"], folder / f"scan{number}", limit=limit)
            scanned = time.perf_counter()
            merge_in_place(module, spec, checkpoint=folders[0])
            merged = time.perf_counter()
            merge_in_place(module, None)
            print(scanned - started, merged - scanned, file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="*", default=[1, 4], metavar="N")
    parser.add_argument("--limit", type=int, default=40, help="documents of each of two tasks to scan")
    parser.add_argument("--threads", type=int, default=0, help="torch's; by default what plam-eval chooses")
    parser.add_argument("--repeats", type=int, default=1)
    measured.add_json_argument(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.limit, options.threads)
    command = [sys.executable, __file__, "--child", "--limit", str(options.limit)]
    command += ["--threads", str(options.threads)]
    with tempfile.TemporaryFile("w+") as log:
        work = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        asked, told = work.stdin, work.stdout
        assert asked is not None and told is not None

        def once(number: int) -> tuple[float, ...]:
            with busy(number):
                print(file=asked, flush=True)
                return tuple(map(float, answer()))

        def answer() -> list[str]:
            if line := told.readline().split():
                return line
            log.seek(0)
            sys.exit(f"the process that works has ended:\n{log.read()[-2000:]}")

        threads = answer()[-1]
        once(0)  # whatever the first time costs
        numbers = [0, *options.busy]
        turns = measured.in_turn({str(number): partial(once, number) for number in numbers}, options.repeats)
        found = {int(number): rounds for number, rounds in turns.items()}
        asked.close()
        work.wait()
    rows, cores = [], os.cpu_count() or 1
    print(f"{threads} thread(s)\n\n| busy processes | scan | | merge | |\n|---|---|---|---|---|")
    for number in numbers:
        cells = []
        for place, name in enumerate(("scan", "merge")):
            taken, quiet = ([each[place] for each in found[count]] for count in (number, 0))
            own = measured.row(
                f"{name} beside {number} process(es) that compute",
                ("beside them", taken),
                ("alone", quiet),
                ideal=max(1.0, (number + 1) / cores),
                ideal_is=f"a fair share of {cores} core(s) for one thread",
            )
            cells.append(f"{own['A']['median']:.2f} s | {own['ratio']['median']:.1f}")
            rows += [own] if number else []
        print(f"| {number or 'none'} | {' | '.join(cells)} |")
    setting = f"{threads} thread(s) of {cores} cores; a scan of {2 * options.limit} documents, a merge of 302 MB"
    measured.write_rows(options.json, rows, setting, seconds=found)


if __name__ == "__main__":
    main()
