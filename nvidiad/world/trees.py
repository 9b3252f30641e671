# SPDX-License-Identifier: Apache-2.0
"""Trees: the builds on disk below one install root, complete and verified or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nvidiad.nouns import manifest as manifests
from nvidiad.nouns import naming
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Kind, Progress, Tree
from nvidiad.world import files, inspection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nvidiad.nouns.manifest import Manifest
    from nvidiad.nouns.model import Build
    from nvidiad.thought.layers import Coming, Kept

LOCK = ".lock"
"""Shared with the installer in the image, so that only one of the two lays down a tree at a time."""

STEP = "install-tree"
_IDENTITY = 16

_ASIDE = f".old{naming.PARTIAL}"
"""How the name of a tree ends that is moved aside for another one."""

_LANDED = f".new{naming.PARTIAL}"
"""How the name of a directory ends in which files of a tree land as they come."""

# What programs look for in ldconfig's cache; libfoo.so and libfoo.so.535.309.01 are not.
_SONAME = re.compile(r"lib64/(lib[^/]+\.so\.[0-9]+)")


class Trees:
    """Every complete tree below an install root; whatever else is there belongs to someone else."""

    def __init__(self, root: Path, loaded: Callable[[], bool] = lambda: False) -> None:
        self.root = root
        self._loaded = loaded
        """Whether a driver is in the kernel: then the tree that `current` names is not replaced."""
        self._known: dict[str, tuple[tuple[int, ...] | None, Manifest, str]] = {}

    def _bundle(self, kind: Kind) -> Path:
        return Path(naming.bundle_root(PurePosixPath(self.root), kind))

    def list(self, kind: Kind = Kind.DRIVER) -> tuple[Tree, ...]:
        """The complete trees of a kind, oldest version first."""
        found = [tree for path in self._places(kind) if (tree := self._tree(path)) is not None]
        here = {tree.path for tree in found}
        others = f"{self._bundle(kind)}/"
        self._known = {p: known for p, known in self._known.items() if p in here or not p.startswith(others)}
        return tuple(found)

    def current(self, kind: Kind = Kind.DRIVER) -> str | None:
        """The path of the directory that `current` names, None where it names none."""
        link = Path(naming.current_path(PurePosixPath(self.root), kind))
        if not link.is_symlink() or not link.is_dir():
            return None
        real = Path(os.path.realpath(link))
        bundle = Path(os.path.realpath(self._bundle(kind)))
        # The install root may itself be reached through a link; trees are named as list() names them.
        return str(self._bundle(kind) / real.relative_to(bundle) if real.is_relative_to(bundle) else real)

    def select(self, tree: str) -> None:
        """Let `current` name a complete tree."""
        path, kind = self._ours(tree)
        link = Path(naming.current_path(PurePosixPath(self.root), kind))
        with files.explained(f"pointing '{link}' to '{tree}'", Code.IMAGE_FAILED):
            if os.path.lexists(link) and not link.is_symlink():
                raise Permanent(
                    Code.OTHER_OWNER,
                    f"'{link}' is not a symbolic link and was not made by nvidiad",
                    "Move it away, or set install.root to another place.",
                )
            target = str(path.relative_to(link.parent))
            if not link.is_symlink() or os.readlink(link) != target:  # noqa: PTH115
                files.replace_symlink(link, target)

    def manifest(self, tree: str) -> Manifest:
        """What the tree says that it is."""
        path = Path(tree)
        key = _state(path / naming.MANIFEST)
        known = self._known.get(tree)
        if known is not None and known[0] == key:
            return known[1]
        text = _manifest_text(path)
        manifest = manifests.parse(text)
        self._known[tree] = (key, manifest, hashlib.sha256(text.encode()).hexdigest()[:_IDENTITY])
        return manifest

    def verify(self, tree: str, build: Build) -> None:
        """Refuse a tree that is not `build`, or that is not entry for entry what its manifest says."""
        manifest = self.manifest(tree)
        manifests.check_build(f"the manifest of '{tree}'", manifest.build, build)
        inspection.refuse_faults(tree, list(inspection.faults(Path(tree), manifest, lambda _: None)))

    def verify_file(self, tree: str, path: str) -> None:
        """Refuse one file or link of a tree that is not what the tree's manifest says."""
        entry = self.manifest(tree).entry(path)
        if entry is None:
            raise inspection.invalid(tree, [f"'{path}' is not in its manifest"])
        inspection.refuse_faults(tree, list(inspection.entry_faults(Path(tree), entry, lambda _: None)))

    def install(self, source: Path, tell: Callable[[Progress], None]) -> Tree:
        """Lay the tree in `source` down beside its place, verify, sync and rename it into its place."""
        from nvidiad.world import laying  # activation, at every boot, has no use for it

        text = _manifest_text(source)
        manifest = manifests.parse(text)
        target = Path(naming.tree_path(PurePosixPath(self.root), manifest.build))
        inspection.refuse_faults(str(source), list(inspection.shape_faults(source, manifest, modes=False)))
        with self._placing(target, manifest.kind):
            if os.path.lexists(target):
                faults = inspection.faults(target, manifest, lambda _: None)
                if _manifest_text(target) == text and not any(faults):
                    tell(Progress(STEP, f"'{target}' is there already", manifest.size, manifest.size))
                    return self._complete(target)
                self._refuse_in_use(target, manifest.kind)
            self._check_space(manifest.build, laying.needed(manifest), manifest.count)
            partial = _partial(target)
            with self._beginning(target):
                laying.copy(source, partial, text, manifest, tell)
                counted = laying.counter(f"verifying '{target}'", manifest.size, tell)
                inspection.refuse_faults(str(partial), list(inspection.faults(partial, manifest, counted)))
                self._put_in_place(target, manifest, tell)
        return self._complete(target)

    def receive(
        self,
        coming: Coming,
        fetch: Callable[[Path], Mapping[str, Kept]],
        tell: Callable[[Progress], None],
    ) -> Tree:
        """Lay a tree down as it comes: `fetch` writes files of any names and says what they are.

        What was hashed while it was written is not read again here.
        """
        from nvidiad.world import laying  # activation, at every boot, has no use for it

        kind = coming.build.kind
        target = Path(naming.tree_path(PurePosixPath(self.root), coming.build))
        with self._placing(target, kind):
            if os.path.lexists(target):
                if self._is_whole(target, coming.manifest):
                    tell(Progress(STEP, f"'{target}' is there already", coming.size, coming.size))
                    return self._complete(target)
                self._refuse_in_use(target, kind)
            self._check_space(coming.build, coming.size + coming.count * laying.BLOCK, coming.count)
            landed, partial = target.with_name(f".{target.name}{_LANDED}"), _partial(target)
            with self._beginning(target):
                files.make_directory(landed)
                text, manifest, items = laying.received(landed, fetch(landed), coming)
                laying.give_names(landed, partial, text, manifest, items)
                files.remove_tree(landed)
                shape = inspection.shape_faults(partial, manifest, modes=True)
                inspection.refuse_faults(str(partial), list(shape))
                self._put_in_place(target, manifest, tell)
        return self._complete(target)

    def remove(self, tree: str) -> None:
        """Remove a tree of ours: no longer a tree at one instant, then gone."""
        path, kind = self._ours(tree)
        if self.current(kind) == str(path):
            sentence = f"'{tree}' is current and is not removed"
            raise Permanent(Code.INTERNAL, sentence, "Select another tree first.")
        with files.explained(f"removing '{tree}'", Code.IMAGE_FAILED), self._locked(kind):
            # While it is there: an older tree of this place, moved aside, would come back in its stead.
            self._sweep(kind)
            partial = _partial(path)
            files.remove_tree(partial)
            path.rename(partial)
            files.fsync_directory(path.parent)
            self._sweep(kind)
            if path.parent != self._bundle(kind):
                with files.suppress_oserror(errno.ENOTEMPTY, errno.EEXIST):
                    path.parent.rmdir()

    # -----------------------------------------------------------------------------------------------
    # Looking.

    def _parents(self, kind: Kind) -> Iterator[Path]:
        """Directories in which our trees may be: those of a driver are below its version."""
        bundle = self._bundle(kind)
        if kind is Kind.CUDA:
            yield bundle
            return
        with files.suppress_oserror(errno.ENOENT, errno.ENOTDIR):
            for path in sorted(bundle.iterdir()):
                if naming.is_version(path.name) and path.is_dir() and not path.is_symlink():
                    yield path

    def _places(self, kind: Kind) -> Iterator[Path]:
        for parent in self._parents(kind):
            with files.suppress_oserror(errno.ENOENT, errno.ENOTDIR):
                yield from sorted(path for path in parent.iterdir() if naming.is_version(path.name))

    def _tree(self, path: Path) -> Tree | None:
        """The tree at this place, None for whatever is not one of ours."""
        if path.is_symlink():
            return None
        try:
            manifest = self.manifest(str(path))
        except Failure:
            return None
        bundle = self._bundle(manifest.kind)
        if Path(naming.tree_path(PurePosixPath(self.root), manifest.build)) != path:
            return None
        if path.parent != bundle and path.parent.is_symlink():
            return None
        state, _, identity = self._known[str(path)]
        return Tree(
            path=str(path),
            build=manifest.build,
            flavour=manifest.flavour,
            libraries=tuple(sorted(m[1] for e in manifest.entries if (m := _SONAME.fullmatch(e.path)))),
            firmware=f"lib/firmware/nvidia/{manifest.driver}" in manifest.directories(),
            minimum_driver=manifest.minimum_driver,
            identity=identity,
            size=manifest.size,
            installed=state[3] / 1e9 if state else 0.0,
            architecture=manifest.architecture,
            os_id=manifest.os_id,
            pci=manifest.pci,
            strays=manifest.strays if manifest.kind is Kind.DRIVER else (),
        )

    def _complete(self, path: Path) -> Tree:
        tree = self._tree(path)
        if tree is None:
            raise Transient(Code.TREE_MISSING, f"'{path}' is not a complete tree", "Install it again.")
        return tree

    def _ours(self, tree: str) -> tuple[Path, Kind]:
        """The path of a complete tree in its place below our root, and its kind."""
        found = self._tree(Path(tree))
        if found is None:
            sentence = f"'{tree}' is not a complete tree in '{self._bundle(Kind.DRIVER)}'"
            raise Permanent(Code.TREE_MISSING, sentence, "Install it again.")
        return Path(found.path), found.build.kind

    # -----------------------------------------------------------------------------------------------
    # Laying down.

    @contextmanager
    def _locked(self, kind: Kind) -> Iterator[None]:
        lock = self._bundle(kind) / LOCK
        with files.locked(lock) as held:
            if not held:
                sentence = f"another installation or removal holds '{lock}'"
                raise Transient(Code.INSTALL_BUSY, sentence, "Wait for it to end.")
            yield

    def _sweep(self, kind: Kind) -> None:
        """Remove what a killed installation or removal left; under the lock nobody works on it.

        What was moved aside for a tree that never came is put back.
        """
        for parent in self._parents(kind):
            for path in parent.glob(f".*{naming.PARTIAL}"):
                if not self._put_back(path):
                    files.remove_tree(path)

    def _put_back(self, path: Path) -> bool:
        if not path.name.endswith(_ASIDE):
            return False
        target = path.with_name(path.name.removesuffix(_ASIDE).removeprefix("."))
        if os.path.lexists(target) or not path.is_dir():
            return False
        try:
            manifest = manifests.parse(_manifest_text(path))
        except Failure:
            return False
        place = Path(naming.tree_path(PurePosixPath(self.root), manifest.build))
        if place != target or any(inspection.faults(path, manifest, lambda _: None)):
            return False
        path.rename(target)
        files.fsync_directory(target.parent)
        return True

    @contextmanager
    def _placing(self, target: Path, kind: Kind) -> Iterator[None]:
        """Under the lock, where this place is ours to lay a tree down in; errors of the disk are told."""
        bundle = self._bundle(kind)
        with files.explained(f"installing '{target}'", Code.IMAGE_FAILED):
            files.make_directory(bundle)
            if target.parent != bundle and target.parent.is_symlink():
                raise _foreign(target.parent)
            with self._locked(kind):
                self._sweep(kind)
                if os.path.lexists(target) and self._tree(target) is None:
                    raise _foreign(target)
                yield

    @contextmanager
    def _beginning(self, target: Path) -> Iterator[None]:
        """With an empty directory to fill, of which nothing is left that has not become a tree."""
        files.make_directory(target.parent)
        files.remove_tree(_partial(target))
        try:
            files.make_directory(_partial(target))
            yield
        finally:
            # What is there now is the old tree, or what failed; after half of the two renames the old one
            # comes back.
            self._sweep(Kind.CUDA if target.parent == self._bundle(Kind.CUDA) else Kind.DRIVER)
            if target.parent != self._bundle(Kind.CUDA):
                with files.suppress_oserror(errno.ENOTEMPTY, errno.EEXIST):
                    target.parent.rmdir()

    def _put_in_place(self, target: Path, manifest: Manifest, tell: Callable[[Progress], None]) -> None:
        partial = _partial(target)
        tell(Progress(STEP, f"syncing '{target}'", manifest.size, manifest.size))
        files.fsync_tree(partial)
        if not os.path.lexists(target):
            partial.rename(target)
        elif not files.exchange(partial, target):
            target.rename(target.with_name(f".{target.name}{_ASIDE}"))
            partial.rename(target)
        files.fsync_directory(target.parent)

    def _is_whole(self, tree: Path, sha256: str) -> bool:
        """Whether a tree is, file by file, the one of a manifest with this digest."""
        text = _manifest_text(tree)
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            return False
        return not any(inspection.faults(tree, manifests.parse(text), lambda _: None))

    def _refuse_in_use(self, target: Path, kind: Kind) -> None:
        if kind is Kind.DRIVER and self._loaded() and self.current() == str(target):
            raise Permanent(
                Code.MODULE_IN_USE,
                f"'{target}' is the tree of the loaded driver and is not replaced by another one",
                "Stop nvidiad and nvidia.service first (the gated units stop too), or try after a reboot.",
            )

    def _check_space(self, build: Build, needed: int, count: int) -> None:
        bundle = self._bundle(build.kind)
        found = os.statvfs(bundle)
        free = found.f_bavail * found.f_frsize
        if free < needed:
            raise files.disk_full(f"the tree of {build} needs {needed} bytes in '{bundle}', {free} are free")
        if found.f_files and found.f_favail < count:
            raise files.disk_full(
                f"the tree of {build} needs {count} inodes in '{bundle}', {found.f_favail} are free"
            )


# ---------------------------------------------------------------------------------------------------
# What a manifest on disk says, and what can go wrong with it.


def _state(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file does."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _manifest_text(tree: Path) -> str:
    path = tree / naming.MANIFEST
    try:
        return files.read_small(path, manifests.MAX_CHARACTERS).decode()
    except UnicodeDecodeError as exc:
        raise Permanent(Code.MANIFEST_INVALID, f"'{path}' is not UTF-8", "Build the image again.") from exc
    except OSError as exc:
        sentence = f"'{tree}' is not a tree: '{path}' cannot be read: {exc.strerror}"
        raise Permanent(Code.TREE_MISSING, sentence, "Install it again.") from exc


def _partial(tree: Path) -> Path:
    return Path(naming.partial_path(PurePosixPath(tree)))


def _foreign(path: Path) -> Permanent:
    return Permanent(
        Code.OTHER_OWNER,
        f"'{path}' is there and is not a tree of nvidiad; it stays untouched",
        "Move it away, or set install.root to another place.",
    )
