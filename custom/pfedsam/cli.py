"""The command line: what FLARE's own `nvflare` does not do. `pfedsam --help` lists the verbs."""

import argparse
import logging
import sys
from pathlib import Path

from pfedsam.errors import UserFault


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0 on success, 2 where the user's input is at fault."""
    options = _parser().parse_args(arguments)
    try:
        options.serve(options)
    except UserFault as fault:
        print(f"pfedsam: {fault}", file=sys.stderr)
        return 2
    return 0


def tell_on_console() -> None:
    """Show this package's own messages, and no other's, on the console."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.addFilter(logging.Filter("pfedsam"))
    logging.getLogger("pfedsam").setLevel(logging.INFO)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pfedsam", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    render = verbs.add_parser(
        "render",
        help="write a job folder that brings its own code, for the console and nvflare job submit",
        epilog="example: pfedsam render jobs/pfedsam /tmp/job --set train.lr=3e-4 --set seed=1",
    )
    render.add_argument("job", type=Path, help="a folder of jobs/")
    render.add_argument("out", type=Path, help="the folder to write; must not exist")
    render.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    render.add_argument("--rounds", type=int, help="change the number of rounds")
    render.add_argument(
        "--continue",
        dest="continues",
        default="",
        metavar="RUN",
        help="go on with a run, by its name or latest",
    )
    render.add_argument(
        "--begin", default="", metavar="STUDY/RUN", help="start from the shared tensors of a finished run"
    )
    render.add_argument("--no-code", action="store_true", help="leave the code out: sites have it installed")
    render.add_argument("--sites", help="names of simulated sites, by comma; default: all that connect")
    render.set_defaults(serve=_render)

    watch = verbs.add_parser(
        "watch",
        help="submit a rendered job and bring its run to the last round, whatever dies meanwhile",
        epilog="example: pfedsam watch /tmp/job --kit kits/lead@hub.org --out results",
    )
    watch.add_argument("job", type=Path, help="a folder that pfedsam render wrote")
    watch.add_argument("--kit", type=Path, required=True, help="your startup kit")
    watch.add_argument("--out", type=Path, default=Path("results"), help="where results are downloaded to")
    watch.add_argument("--continue", dest="continues", default="", metavar="RUN", help="go on with this run")
    watch.set_defaults(serve=_watch)

    convert = verbs.add_parser(
        "convert",
        help="convert a published .pth to safetensors, once",
        epilog="example: pfedsam convert weights/sam_vit_b_01ec64.pth",
    )
    convert.add_argument("file", type=Path)
    convert.set_defaults(serve=_convert)

    synthetic = verbs.add_parser(
        "synthetic",
        help="write a synthetic site's images, masks and datalist",
        epilog="example: pfedsam synthetic /tmp/site-1 --site site-1 --train 48",
    )
    synthetic.add_argument("out", type=Path)
    synthetic.add_argument("--site", default="site-1", help="a demo site's name, or any other")
    synthetic.add_argument("--seed", type=int, default=0)
    for split, count in (("train", 48), ("val", 8), ("test", 16)):
        synthetic.add_argument(f"--{split}", type=int, default=count)
    synthetic.set_defaults(serve=_synthetic)
    return parser


def _render(options: argparse.Namespace) -> None:
    from pfedsam.jobs import render

    sites = options.sites.split(",") if options.sites else None
    render(
        options.job,
        options.out,
        changes=options.set,
        rounds=options.rounds,
        code=not options.no_code,
        sites=sites,
        run=options.continues,
        continues=bool(options.continues),
        begin=options.begin,
    )
    print(f"wrote {options.out}; submit it with: nvflare job submit -j {options.out}")


def _watch(options: argparse.Namespace) -> None:
    from pfedsam.flare.admin import Admin
    from pfedsam.flare.watch import watch

    tell_on_console()
    with Admin(options.kit.resolve()) as admin:
        outcome = watch(options.job, admin, out=options.out.resolve(), continues=options.continues)
    print(f"run {outcome.run} ended after {len(outcome.ends)} jobs; results: {outcome.folder}")


def _convert(options: argparse.Namespace) -> None:
    from pfedsam.model.weights import convert

    print(f"wrote {convert(options.file)}")


def _synthetic(options: argparse.Namespace) -> None:
    from pfedsam.data.synthetic import write_site

    counts = {split: getattr(options, split) for split in ("train", "val", "test")}
    print(f"wrote {write_site(options.out, options.site, counts, options.seed)}")


if __name__ == "__main__":
    sys.exit(main())
