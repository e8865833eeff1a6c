"""Streams: whole iterators to the GPU, and a queue of uploads by urgency. Start at `feed` and `UploadQueue`."""

from .feed import feed
from .progress import Progress, show
from .queue import QueueStatistics, UploadQueue
from .upload import Upload

__all__ = ["Progress", "QueueStatistics", "Upload", "UploadQueue", "feed", "show"]
