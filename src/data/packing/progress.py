"""A progress bar for reading text."""

import time

from tqdm.auto import tqdm

from src.data.text.corpus import Source


class ReadingBar(tqdm):
    """A progress bar over the bytes of some sources that shows words per second.

    Args:
        title: Text before the bar.
        sources: The sources that will be read.
        show: Show the bar, if the output is a terminal.
    """

    def __init__(self, title: str, sources: list[Source], show: bool):
        self.num_words, self.started = 0, time.perf_counter()
        size = sum(source.size for source in sources)
        disable = None if show else True  # None: unless the output is no terminal
        super().__init__(
            desc=title, total=size, unit="B", unit_scale=True, disable=disable
        )

    def advance(self, num_bytes: int, num_words: int) -> None:
        """Add what has been read since the last call."""
        self.update(num_bytes)
        self.num_words += num_words
        speed = self.num_words / (time.perf_counter() - self.started)
        self.set_postfix_str(f"{speed:,.0f} words/s", refresh=False)
