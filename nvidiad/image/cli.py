# SPDX-License-Identifier: Apache-2.0
"""The command line of nvidiad-image: verbs, options, exit statuses."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from nvidiad import __version__
from nvidiad.image.nouns.model import Architecture, Cell, DriverSource, Family, SourceKind
from nvidiad.image.options import KEY, common, driver, engine, feeds, place
from nvidiad.nouns.errors import Failure
from nvidiad.rim.terminal import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nvidiad.image.nouns.model import OsRelease
    from nvidiad.image.shop import Making, Shop
    from nvidiad.nouns.model import Progress

    Tell = Callable[[Progress], None]
    Verb = Callable[[argparse.Namespace, Tell], int]

OK, FAILED, USAGE = range(3)
CHANNELS = {
    Family.FLATCAR: ("stable", "beta", "alpha", "lts"),
    Family.COREOS: ("stable", "beta", "alpha"),
    Family.DEBIAN: ("bookworm", "bookworm-security"),
}
_EPILOG = """\
exit status: 0 done, 1 failure (for prove: not proven; for publish: something is still missing), 2 usage
See nvidiad-image(1) and docs/images.md."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit status."""
    options = parser().parse_args(arguments)
    progress = ProgressLine(sys.stderr)
    try:
        from nvidiad.image.world.filesystem import ended_by_sigterm

        run: Verb = options.run
        with ended_by_sigterm():
            return run(options, progress.show)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return FAILED
    except Failure as failure:
        progress.end()
        return _fail(failure)
    finally:
        progress.end()


def _fail(failure: Failure) -> int:
    print(f"nvidiad-image: {failure.sentence} [{failure.code}]", file=sys.stderr)
    if failure.remedy:
        print(failure.remedy, file=sys.stderr)
    for note in getattr(failure, "__notes__", ()):
        print(f"\nThe end of what was said:\n{note}", file=sys.stderr)
    return FAILED


# ---------------------------------------------------------------------------------------------------
# Options


def parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    top = argparse.ArgumentParser(
        prog="nvidiad-image",
        description="Build, prove and publish the images that nvidiad pulls.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"nvidiad-image {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, run: Verb, *groups: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text, parents=[common(), *groups])
        made.set_defaults(run=run)
        return made

    verb("releases", "list the releases of an OS, with their kernels", _releases, feeds(several=True))
    made = verb(
        "developer",
        "make the image that has a release's compiler",
        _developer,
        feeds(),
        engine(),
    )
    made.add_argument("release", metavar="RELEASE", help="a version, a channel, or a Debian kernel")
    made.add_argument("--repository", default="", metavar="PREFIX", help="in front of the image's name")
    made.add_argument("--again", action="store_true", help="also where the image is there already")
    made = verb(
        "build",
        "build a driver's image for a release",
        _build,
        feeds(),
        engine(),
        driver(),
    )
    made.add_argument("release", metavar="RELEASE")
    made = verb("cuda", "make an image of a CUDA toolkit", _cuda, engine())
    made.add_argument("toolkit", type=place, metavar="DIRECTORY", help="an installed toolkit")
    made.add_argument("--cuda-version", required=True, metavar="VERSION")
    made.add_argument("--minimum-driver", required=True, metavar="VERSION", help="oldest that it runs on")
    made.add_argument("--architecture", type=Architecture, default=Architecture.AMD64, metavar="ARCH")
    made.add_argument("--repository", default="cuda", metavar="REPOSITORY")
    made.add_argument("--base", default="", metavar="IMAGE")
    made = verb("prove", "prove that an image's modules fit their kernel", _prove, engine())
    made.add_argument("image", metavar="IMAGE")
    made.add_argument("--kernel", default="", metavar="RELEASE", help="another kernel than the image names")
    made.add_argument("--developer", default="", metavar="IMAGE", help="the developer image with the kernel")
    made.add_argument("--kernel-root", type=place, metavar="DIRECTORY", help="has boot/ and lib/modules/")
    made.add_argument("--skip-boot", action="store_true", help="boot nothing; then it is not proven")
    made.add_argument("--accelerator", default="tcg", metavar="NAME", help="of QEMU: tcg or kvm")
    for name, text, run in (
        ("matrix", "show what should exist, what does, and what cannot", _matrix),
        ("publish", "build, prove and push what is missing", _publish),
    ):
        made = verb(name, text, run, engine())
        made.add_argument("recipe", type=place, metavar="RECIPE")
        made.add_argument(
            "--auth-file", type=place, metavar="FILE", help="credentials: docker's config.json"
        )
        made.add_argument("--insecure", action="store_true", help="use HTTP beyond loopback, too")
        made.add_argument("--key", type=place, action="append", default=[], metavar="FILE", help=KEY)
    made.add_argument("--skip-proof", action="store_true", help="publish without proof")
    made.add_argument("--retry-unbuildable", action="store_true", help="try again what could not be built")
    made.add_argument("--sign-present", action="store_true", help="sign also what others have published")
    made.add_argument("--list", type=place, metavar="FILE", help="also write the compatibility list there")
    made.add_argument("--accelerator", default="tcg", metavar="NAME", help="of QEMU: tcg or kvm")
    made.add_argument("--jobs", type=int, default=0, metavar="N")
    return top


def _shop(options: argparse.Namespace) -> Shop:
    from nvidiad.image.shop import Shop

    known = vars(options)
    usual = Shop()
    return Shop(
        socket=known.get("engine", usual.socket),
        temporary=known.get("temporary", usual.temporary),
        cache=known.get("cache"),
        auth_file=known.get("auth_file"),
        mirror=known.get("mirror", ""),
        apt_sources=tuple(known.get("apt_source") or ()),
        keys=tuple(known.get("key") or ()),
        accelerator=known.get("accelerator", usual.accelerator),
        insecure=known.get("insecure", False),
    )


# ---------------------------------------------------------------------------------------------------
# Verbs


def _releases(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import shop as shops
    from nvidiad.thought.render import table

    found = shops.find(
        _shop(options),
        options.family,
        options.channel or CHANNELS[options.family],
        options.architecture or [Architecture.AMD64],
        options.newest,
        tell,
    )
    if options.json != "off":
        told = {"schema": 1, "releases": [_release(each) for each in found.releases], "notes": found.notes}
        return _print(told, options)
    rows = [
        (each.channel, each.version, str(each.architecture), each.kernel or "?", each.date, each.source)
        for each in found.releases
    ]
    sys.stdout.write(table(rows, ("CHANNEL", "VERSION", "ARCH", "KERNEL", "DATE", "KNOWN FROM")))
    return _note(found.notes)


def _release(release: OsRelease) -> dict[str, str]:
    return {name: str(getattr(release, name)) for name in release.__match_args__}


def _one(options: argparse.Namespace, tell: Tell) -> OsRelease:
    from nvidiad.image import shop as shops

    channel = options.channel or ("bookworm" if options.family is Family.DEBIAN else "")
    found = shops.find_one(
        _shop(options), options.family, options.release, options.architecture, channel, tell
    )
    _note(found.notes)
    return found.releases[0]


def _developer(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import shop as shops

    release = _one(options, tell)
    made = shops.make_developer(_shop(options), release, options.repository, again=options.again, tell=tell)
    _note(made.notes)
    if options.json != "off":
        told = {"schema": 1, "image": made.reference, "made": made.made, "release": _release(made.release)}
        return _print(told, options)
    print(made.reference)
    return OK


def _build(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import shop as shops
    from nvidiad.image.nouns.recipe import KERNEL_TAG, TAG
    from nvidiad.nouns import naming
    from nvidiad.thought.render import size

    if options.source is not SourceKind.DEBIAN and not (options.location and options.sha256):
        print(f"nvidiad-image: --source={options.source} needs --location and --sha256", file=sys.stderr)
        return USAGE
    for one, other in (
        ("--fabric-manager", "--fabric-manager-sha256"),
        ("--module-key", "--module-certificate"),
    ):
        if bool(getattr(options, _name(one))) != bool(getattr(options, _name(other))):
            print(f"nvidiad-image: {one} needs {other}", file=sys.stderr)
            return USAGE
    release = _one(options, tell)
    source = DriverSource(
        options.driver,
        options.flavour,
        options.source,
        product=options.product,
        location=options.location,
        sha256=options.sha256,
        graphics=options.graphics,
        fabric_manager=options.fabric_manager,
        fabric_manager_sha256=options.fabric_manager_sha256,
    )
    usual = KERNEL_TAG if options.family is Family.DEBIAN else TAG
    tag = naming.image_tag(options.tag or usual, Cell(release, source, "").build)
    built = shops.build(
        _shop(options), release, source, f"{options.repository}:{tag}", _making(options), tell
    )
    if options.sbom:
        options.sbom.write_text(built.bill)
    if options.json != "off":
        facts: dict[str, object] = {name: getattr(built, name) for name in built.__match_args__}
        del (
            facts["build"],
            facts["bill"],
        )  # its parts are in the reference; the bill is a document of its own
        return _print({"schema": 1, **facts}, options)
    print(
        f"{built.reference}: {len(built.modules)} modules, {size(built.tree_bytes)} in the tree, "
        f"layer {built.layer}, compiled in {built.compile_seconds:.0f} s"
    )
    for name in built.absent:
        print(f"not in this driver's package: {name}", file=sys.stderr)
    return OK


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _making(options: argparse.Namespace) -> Making:
    from nvidiad.image.shop import Making

    return Making(
        base=options.base,
        developers=options.developers,
        jobs=options.jobs,
        fresh=options.fresh,
        key=options.module_key,
        certificate=options.module_certificate,
    )


def _cuda(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import shop as shops

    made = shops.build_cuda(
        _shop(options),
        options.toolkit,
        options.cuda_version,
        options.minimum_driver,
        options.architecture,
        f"{options.repository}:{options.cuda_version}",
        options.base,
        tell,
    )
    if options.json != "off":
        return _print({"schema": 1, "image": made}, options)
    print(made)
    return OK


def _prove(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import shop as shops
    from nvidiad.image.verbs.prove import Booting

    verdict = shops.proof(
        _shop(options),
        options.image,
        shops.Against(options.developer, options.kernel_root, options.kernel),
        booting=Booting.SKIPPED if options.skip_boot else Booting.REQUIRED,
        tell=tell,
    )
    if options.json != "off":
        checks = [{name: getattr(c, name) for name in c.__match_args__} for c in verdict.checks]
        told = {"schema": 1, "image": verdict.image, "kernel": verdict.kernel, "proven": verdict.proven}
        _print({**told, "checks": checks, "seconds": round(verdict.seconds, 1)}, options)
    else:
        for check in verdict.checks:
            code = f" [{check.code}]" if check.code else ""
            print(f"{'ok' if check.passed else 'FAILED':6} {check.name:12} {check.sentence}{code}")
        word = "proven" if verdict.proven else "NOT proven"
        print(f"{verdict.image} is {word} against kernel {verdict.kernel or '?'} ({verdict.seconds:.0f} s)")
    return OK if verdict.proven else FAILED


def _matrix(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import app
    from nvidiad.image.thought import matrix

    shop, recipe = _shop(options), app.read_recipe(options.recipe)
    found = app.look(shop, recipe, app.wanted_releases(shop, recipe, tell), tell)
    if options.json != "off":
        return _print(matrix.document(recipe.repository, found.standings, found.notes), options)
    sys.stdout.write(matrix.table(found.standings))
    return _note(found.notes)


def _publish(options: argparse.Namespace, tell: Tell) -> int:
    from nvidiad.image import app
    from nvidiad.image import shop as shops
    from nvidiad.image.thought import publication
    from nvidiad.image.verbs.publish import Wishes
    from nvidiad.nouns import compatibility
    from nvidiad.nouns.errors import Code
    from nvidiad.world import files

    shop, recipe = _shop(options), app.read_recipe(options.recipe)
    wishes = Wishes(
        prove=not options.skip_proof,
        retry_unbuildable=options.retry_unbuildable,
        sign_present=options.sign_present,
        architectures=(app.this_machine(),),
    )
    known = app.wanted_releases(shop, recipe, tell)
    done = app.publish_all(shop, recipe, known, wishes, shops.Making(jobs=options.jobs), tell)
    if options.json != "off":
        _print(publication.document(recipe.repository, done), options)
    else:
        sys.stdout.write(publication.text(done))
    if options.list is not None:
        with files.explained(f"writing '{options.list}'", Code.COMMAND_FAILED):
            options.list.write_text(compatibility.render(done.compatibility))
    return OK if done.complete and not known.failed else FAILED


def _print(told: object, options: argparse.Namespace) -> int:
    print(json.dumps(told, indent=2 if options.json == "pretty" else None, default=str))
    return OK


def _note(notes: Iterable[str]) -> int:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return OK
