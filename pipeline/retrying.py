"""When to ask again somebody who did not answer: sooner at first, then seldom, and not for ever."""

import time

RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15, 30)


class Retry:
    """Keeps count of one server's silence.

    Attributes:
        num: failures since it last answered.
        total: failures in all.
    """

    def __init__(self) -> None:
        self.num = self.total = 0
        self._at, self._since, self._latest = 0.0, 0.0, 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be asked now."""
        return time.monotonic() >= self._at

    @property
    def wait(self) -> float:
        """Seconds until it may be asked."""
        return max(0.0, self._at - time.monotonic())

    @property
    def seconds(self) -> float:
        """For how long it had been silent when it was asked last."""
        return self._latest - self._since if self.num else 0.0

    def failed(self) -> None:
        """It did not answer."""
        now = time.monotonic()
        if not self.num:
            self._since = now
        self._latest = now
        self._at = now + RETRY_SECONDS[min(self.num, len(RETRY_SECONDS) - 1)]
        self.num, self.total = self.num + 1, self.total + 1

    def answered(self) -> None:
        """It did."""
        self.num, self._at = 0, 0.0
