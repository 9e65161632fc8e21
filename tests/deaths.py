"""Deaths of a process that trains under privacy, at moments that are counted: by raising, and nothing after it is run.

What the dead process drew is kept, so that a test can hold it against what the next one draws, and against the ledger.
"""

from __future__ import annotations

import os

from models.private import noise, private_sgd


class Killed(BaseException):
    """The process ends here."""


class Deaths:
    """Ends the process (by raising) at the n-th moment it counts: around each step, and before, in and after each write."""

    def __init__(self, monkeypatch):
        self.left, self.drawn, self.noises, write = 0, 0, [], os.pwrite
        step, sample, gaussian = private_sgd.PrivateStep.__call__, noise.poisson_sample, noise.gaussian

        def stepped(*args):
            self.moment()
            done = step(*args)
            self.moment()
            return done

        def written(handle, payload, at):
            self.moment()
            if self.left == 1:  # torn
                write(handle, payload[: len(payload) // 2], at)
            self.moment()
            count = write(handle, payload, at)
            self.moment()
            return count

        monkeypatch.setattr(private_sgd.PrivateStep, "__call__", stepped)
        monkeypatch.setattr(noise, "poisson_sample", lambda *args: (self.count(), sample(*args))[1])
        monkeypatch.setattr(noise, "gaussian", lambda *args: self.keep(gaussian(*args)))
        monkeypatch.setattr(os, "pwrite", written)

    def moment(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def count(self):
        self.drawn += 1

    def keep(self, drawn):
        self.noises.append(drawn.copy())
        return drawn
