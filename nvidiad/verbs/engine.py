# SPDX-License-Identifier: Apache-2.0
"""The engine: does the steps of a plan one after the other and stops at the first that fails."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, assert_never

from nvidiad.nouns import manifest, naming
from nvidiad.nouns.errors import Code, Failure, Permanent, Transient
from nvidiad.nouns.model import Kind, problem_of
from nvidiad.nouns.plan import Report, StepResult
from nvidiad.nouns.steps import (
    CheckDriver,
    ConfigureLinker,
    HoldReboot,
    InstallTree,
    LoadHostModules,
    LoadModule,
    MakeNodes,
    MountOverlay,
    PullImage,
    RaiseDelay,
    RebootHost,
    RefreshLinkerCache,
    ReleaseReboot,
    ReloadUnit,
    RemoveNodes,
    RemoveTree,
    RenewTree,
    SelectTree,
    SetFirmwarePath,
    StartUnit,
    StopUnit,
    UnloadModule,
    UnmountOverlay,
    WriteGates,
    step_name,
)
from nvidiad.nouns.value import replace
from nvidiad.thought import activation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvidiad.nouns.model import Build, Progress
    from nvidiad.nouns.plan import Plan
    from nvidiad.nouns.steps import Step
    from nvidiad.verbs.ports import DriverPorts, Log, Ports


class DriverEngine:
    """Steps of activation and deactivation: what needs neither bus nor container engine."""

    def __init__(self, ports: DriverPorts, log: Log, *, seconds: Callable[[], float]) -> None:
        self.driver = ports
        self.log = log
        self._seconds = seconds

    def execute(self, plan: Plan, *, stopping: Callable[[], bool] = lambda: False) -> Report:
        """Do the plan's steps in order; `stopping` is asked between two steps."""
        results: list[StepResult] = []
        for step in plan.steps:
            if stopping():
                break
            started = self._seconds()
            problem = None
            try:
                self.perform(step)
            except Failure as failure:
                problem = problem_of(failure)
            result = StepResult(step, self._seconds() - started, problem)
            results.append(result)
            self._tell(result)
            if problem:
                break
        return Report(plan, tuple(results))

    def perform(self, step: Step) -> None:
        """Do one step, raising Failure."""
        driver = self.driver
        match step:
            case SelectTree(tree=tree):
                driver.trees.select(tree)
            case MountOverlay(lower=lower, target=target):
                driver.mounts.overlay(lower, target)
            case UnmountOverlay(target=target):
                driver.mounts.unmount(target)
            case ConfigureLinker(text=text):
                driver.linker.configure(text)
            case RefreshLinkerCache():
                driver.linker.refresh()
            case SetFirmwarePath(path=path):
                driver.modules.set_firmware_path(path)
            case LoadHostModules(required=required, optional=optional):
                self._load_host_modules(required, optional)
            case LoadModule(module=module, parameters=parameters, tree=tree):
                # What goes into the kernel is hashed right before, whoever laid the tree down.
                driver.trees.verify_file(tree, str(Path(module.path).relative_to(tree)))
                driver.modules.load(module, parameters)
            case UnloadModule(name=name):
                driver.modules.unload(name)
            case MakeNodes():
                driver.nodes.make()
            case RemoveNodes():
                driver.nodes.remove()
            case CheckDriver():
                self._check(step)
            case (
                PullImage()
                | InstallTree()
                | RenewTree()
                | RemoveTree()
                | WriteGates()
                | StartUnit()
                | StopUnit()
                | ReloadUnit()
                | RaiseDelay()
                | HoldReboot()
                | ReleaseReboot()
                | RebootHost()
            ):
                raise Permanent(Code.INTERNAL, f"activation was given the step '{step.describe()}'")
            case _:
                assert_never(step)

    def _load_host_modules(self, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
        absent = self.driver.modules.load_from_host((*required, *optional))
        for name in absent:
            if name in required:
                self.log.warning("host module could not be loaded, trying the driver anyway", module=name)
            else:
                self.log.debug("optional host module is absent", module=name)

    def _check(self, step: CheckDriver) -> None:
        """The last step: module, libraries and nodes are there, and of one driver."""
        version = step.driver
        loaded = {module.name: module.version for module in self.driver.modules.loaded()}
        told = self.driver.modules.driver_version()
        if loaded.get("nvidia") != version or told != version:
            module = loaded.get("nvidia")
            raise Permanent(
                Code.DRIVER_MISMATCH,
                f"driver {version} was brought up, but the kernel has {module} and says {told}",
                "Reboot; if it stays so, another driver is loaded early at boot.",
            )
        nodes = self.driver.nodes.missing()
        linker = self.driver.linker.facts(step.directory, step.libraries)
        libraries = linker.missing
        if nodes or libraries:
            raise Transient(
                Code.EXPOSURE_FAILED,
                f"missing after activation: {', '.join((*nodes, *libraries))}",
                f"See what ldconfig says of '{step.directory}'; every library needs its own SONAME.",
            )
        # Now that ours are in the cache: does something else still come before them?
        if shadowed := activation.mismatch(version, linker):
            raise Permanent(shadowed.code, shadowed.sentence, shadowed.remedy)

    def _tell(self, result: StepResult) -> None:
        fields = {"step": step_name(result.step), "seconds": round(result.seconds, 3)}
        problem = result.problem
        if problem is None:
            self.log.info("done", what=result.step.describe(), **fields)
        else:
            what = f"{result.step.describe()}: {problem.sentence}"
            self.log.error("failed", what=what, code=str(problem.code), **fields)


class Engine(DriverEngine):
    """All steps."""

    def __init__(
        self,
        ports: Ports,
        log: Log,
        *,
        seconds: Callable[[], float],
        tell: Callable[[Progress], None],
        modules: Sequence[str] = (),
    ) -> None:
        """`modules` are those that are to be loaded; where nobody says, it may be all of a tree."""
        super().__init__(ports.driver, log, seconds=seconds)
        self._ports = ports
        self._modules = modules
        self._report_progress = tell
        self._digests: dict[str, str] = {}

    def perform(self, step: Step) -> None:
        tell = self._report_progress
        match step:
            case PullImage():
                self._pull(step)
            case InstallTree():
                self._install(step)
            case RenewTree():
                self._renew(step)
            case RemoveTree(tree=tree):
                self.driver.trees.remove(tree)
            case StopUnit(name=name):
                self._ports.units.stop(name, tell=tell)
            case RaiseDelay(seconds=seconds):
                self._ports.shutdowns.raise_limit(seconds)
            case HoldReboot(why=why):
                self._ports.shutdowns.hold(why)
            case ReleaseReboot():
                self._ports.shutdowns.release()
            case RebootHost():
                self._ports.shutdowns.reboot()
            case WriteGates(units=units):
                self._ports.units.write_gates(units)
            case StartUnit(name=name, wait=wait):
                self._ports.units.start(name, wait=wait, tell=tell)
            case ReloadUnit(name=name):
                self._ports.units.reload(name, tell=tell)
            case _:
                super().perform(step)

    def digest(self, reference: str) -> str:
        """What a reference was in the registry when this engine asked; empty where it did not."""
        return self._digests.get(reference, "")

    def fetch(self, reference: str, *, gentle: bool = False) -> str:
        """Pull what a reference names, once somebody vouches for it; its digest."""
        digest = self._vouched(reference)
        self._ports.images.pull(reference, digest, self._report_progress, gentle=gentle)
        self._digests[reference] = digest
        return digest

    def _vouched(self, reference: str) -> str:
        """What a reference names now. From here on it is named by its digest: a tag can move meanwhile."""
        from nvidiad.verbs.assurance import assure  # activation, at every boot, has no use for it

        digest = self._ports.images.resolve(reference)
        assure(reference, digest, self._ports.vouchers, self.log)
        return digest

    def _pull(self, step: PullImage) -> None:
        try:
            self.fetch(step.reference, gentle=step.gentle)
        except Failure as missing:
            if missing.code is Code.IMAGE_MISSING and step.build.kind is Kind.DRIVER:
                self._explain(step.reference, step.build)
            raise

    def _renew(self, step: RenewTree) -> None:
        """Replace a tree that is of no use, where its tag names another image by now."""
        digest = self._ports.images.resolve(step.reference)
        if digest == step.digest:
            raise Transient(
                Code.IMAGE_MISMATCH,
                f"'{step.reference}' still is the image that '{step.tree}' was installed from",
                "Publish another image under this tag.",
            )
        self._pull(PullImage(step.reference, step.build, gentle=True))
        self._install(InstallTree(step.reference, step.build, gentle=True))

    def _explain(self, reference: str, build: Build) -> None:
        """Raise why an image is not there, where those who build the images know why."""
        from nvidiad.thought import refusals  # activation, at every boot, has no use for it

        try:
            entry = self._ports.lists.unbuildable(reference)
        except Failure as failure:
            # The list helps a person; what the host lacks is the image.
            self.log.debug("no compatibility list, proceeding anyway", error=failure.sentence)
            return
        if entry is not None:
            raise refusals.unbuildable(reference, build, entry.reason)

    def _install(self, step: InstallTree) -> None:
        """Run what was pulled in this plan, by digest: a tag may have moved meanwhile."""
        from nvidiad.verbs import examine  # activation, at every boot, has no use for it

        images, trees, build = self._ports.images, self.driver.trees, step.build
        digest = self._digests.get(step.reference) or self._vouched(step.reference)
        self._digests[step.reference] = digest
        labels = images.labels(step.reference, digest)
        if build.kind is Kind.DRIVER and not build.kernel:
            # The next OS is known by its version only: the image says which kernel that has.
            build = replace(build, kernel=manifest.labelled(labels).kernel)
        manifest.check_labels(labels, build)
        manifest.check_driver(labels, build, step.driver)
        if build.kind is Kind.DRIVER:
            examine.refuse_image(self._ports, labels, build)
        tell = self._report_progress
        images.install(step.reference, digest, trees, tell, gentle=step.gentle)
        tree = str(naming.tree_path(PurePosixPath(trees.root), build))
        try:
            trees.verify(tree, build)
            if build.kind is Kind.DRIVER:
                self._check_kernel(tree, build)
                examine.refuse_tree(self._ports, tree, build, self._modules)
        except Failure:
            # It was not there before this step, or was of no use: nothing that works is lost with it.
            trees.remove(tree)
            raise
        try:
            images.discard(step.reference, digest)
        except Failure as failure:
            self.log.debug("the image stays in the engine, proceeding anyway", error=failure.sentence)

    def _check_kernel(self, tree: str, build: Build) -> None:
        """An image may say that it fits and hold modules that do not."""
        for module in self.driver.modules.read(tree, build.kernel):
            if module.kernel != build.kernel:
                raise Permanent(
                    Code.VERMAGIC_MISMATCH,
                    f"'{module.path}' has vermagic '{module.vermagic}', its image is for '{build.kernel}'",
                    "Publish an image that is built for this kernel.",
                )
