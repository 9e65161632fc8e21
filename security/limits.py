"""How fast each caller may ask: the generic cell rate algorithm (GCRA), in this process.

One number per key, the theoretical arrival time of its next request, is the whole state; in any span of T seconds a key
gets at most burst + rate * T requests. The number of keys is bounded. It does not know who the keys are, nor the time.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict

SECOND = 1_000_000_000  # whole nanoseconds: sums of floats would drift by a request now and then
OVERFLOW = "\x00overflow"  # no subject of a token holds a NUL


class Limiter:
    """Admits `burst` requests at once and `rate_per_second` steadily, for each key by itself.

    At most `max_keys` keys are remembered. A key is forgotten only when it is idle, which changes nothing for it; when
    all are busy, new keys share one allowance rather than push a busy one out (that would hand it a fresh burst).
    """

    def __init__(self, rate_per_second: float, burst: int, *, max_keys: int = 65_536) -> None:
        if not (math.isfinite(rate_per_second) and rate_per_second > 0):
            raise ValueError(f"rate {rate_per_second} per second: give a finite number above 0")
        if burst < 1 or max_keys < 1:
            raise ValueError(f"burst {burst}, max_keys {max_keys}: each must be at least 1")
        self._interval = math.ceil(SECOND / rate_per_second)
        self._tolerance = (burst - 1) * self._interval
        self._max_keys = max_keys
        self._arrivals: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, key: str, now: float) -> float:
        """0.0 when the request may go on, else the seconds to wait. `now` in seconds of a clock that never steps back.

        A refused request costs the caller nothing.
        """
        moment = int(now * SECOND)
        with self._lock:
            arrival = self._arrivals.get(key)
            if arrival is None:
                key = self._place(key, moment)
                arrival = self._arrivals.get(key, moment)
            arrival = max(arrival, moment)
            ahead = arrival - moment - self._tolerance
            if ahead > 0:
                return ahead / SECOND
            self._arrivals[key] = arrival + self._interval
            self._arrivals.move_to_end(key)
            return 0.0

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._arrivals)

    def _place(self, key: str, moment: int) -> str:
        """Room for a new key: forget idle ones, least recently admitted first; without room, the shared key."""
        while self._arrivals and next(iter(self._arrivals.values())) <= moment:
            self._arrivals.popitem(last=False)
        return key if len(self._arrivals) < self._max_keys else OVERFLOW
