# SPDX-License-Identifier: Apache-2.0
"""Labelling: whatever is published is said in the feature file, too, where one is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvidiad.nouns.errors import Failure
from nvidiad.thought import labels

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from nvidiad.nouns.plan import Status
    from nvidiad.verbs.ports import FeatureFiles, Log


class Labeller:
    """Remembers which file it wrote, to remove it when another one, or none, is configured."""

    def __init__(self, files: FeatureFiles, log: Log) -> None:
        self._files = files
        self._log = log
        self._place: PurePosixPath | None = None
        self._said = False
        """It says something that we have seen to be so, and that is not left from before."""
        self._told = ""

    def label(self, place: PurePosixPath | None, status: Status) -> None:
        """Let the file at `place` say what the status says; that it cannot be written ends nothing."""
        try:
            if self._place is not None and self._place != place:
                self._files.put(self._place, None)
                self._said = False
            self._place = place
            if place is not None and not (self._said and labels.stands(status)):
                text = labels.text(status)
                self._files.put(place, text)
                self._said = text is not None
        except Failure as failure:
            if failure.sentence != self._told:
                self._log.warning(
                    "the labels of this node may be old, proceeding anyway", error=failure.sentence
                )
            self._told = failure.sentence
        else:
            self._told = ""
