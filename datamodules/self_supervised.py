"""Images without labels, as views of themselves."""

from __future__ import annotations

from dataclasses import replace

from datamodules.base import ImageDataModule, ImageSource
from datamodules.loading import BatchLoader, ImageFiles, Loading, Views


class ViewsDataModule(ImageDataModule):
    """Views of a data set's images for training, and of its validation images beside it.

    Args:
        source: the data set.
        views: from an image to its views.
        image_size: side of the views in pixels.
        loading: batches, workers, seed.
    """

    def __init__(
        self, source: ImageSource, views: Views, image_size: int, loading: Loading
    ) -> None:
        super().__init__(source, image_size, loading)
        self.views = views

    def setup(self, stage: str) -> None:
        """Lists the images."""
        self.train_files = self.source.files(self.source.split)
        self.val_files = self.source.files("val")
        seed = self.loading.seed
        self.train_set = ImageFiles(self.train_files, self.views, seed)
        self.val_set = ImageFiles(self.val_files, self.views, seed)

    @property
    def validates(self) -> bool:
        """A correlation needs two images."""
        return len(self.val_files) >= 2

    @property
    def transductive(self) -> bool:
        """Whether training sees validation images."""
        return bool(set(self.train_files) & set(self.val_files))

    def train_dataloader(self) -> BatchLoader:
        """Shuffled full batches, continuing where the trainer stands."""
        return self.loading.loader(self.train_set, shuffle=True, first_batch=self._batches_done)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """The same views of the same images every time, so that the loss is comparable."""
        if not self.validates:
            return []
        size = min(self.loading.batch_size, len(self.val_set))
        chunk = self.loading.chunk_size
        loading = replace(
            self.loading, batch_size=size, chunk_size=min(chunk, size) if chunk else None
        )
        return loading.loader(self.val_set, shuffle=False)
