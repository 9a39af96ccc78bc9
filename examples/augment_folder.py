"""Views of a folder of photographs of any sizes, made where the training is.

    python examples/augment_folder.py FOLDER

Workers decode JPEGs with Pillow and pack each batch of uint8 images into one tensor; the main
process makes all views of the batch in one call, on the GPU where there is one. Each image carries
its number in the folder: the same epoch gives an image the same views, however many workers there
are and whatever else is in its batch.
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fastssl import augment

SUFFIXES = {".jpg", ".jpeg"}


class Photographs(Dataset):
    """Decoded images of a folder and everything below it, with their numbers."""

    def __init__(self, folder: Path):
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise SystemExit(f"no JPEGs in {folder}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        """(Pillow image, its number)."""
        with Image.open(self.files[index]) as image:
            return image.convert("RGB"), index


def collate(samples):
    """(the images as one tensor with their shapes, their numbers)."""
    images, numbers = zip(*samples, strict=True)
    return augment.pack(images), torch.tensor(numbers)


def main(arguments: list[str] | None = None) -> None:
    """What the command runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--picture", type=Path, help="where to save views of the first batch")
    args = parser.parse_args(arguments)

    loader = DataLoader(
        Photographs(args.folder),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        collate_fn=collate,
        pin_memory=args.device.startswith("cuda"),
    )
    aug = augment.SimCLR(args.size, seed=0).to(args.device)
    for epoch in range(args.epochs):
        start, made = time.perf_counter(), 0
        for images, numbers in loader:
            images = images.to(args.device, non_blocking=True)
            views = aug(images, sample_ids=numbers, step=epoch)
            made += len(views) * len(numbers)
            # z0, z1 = (model(view) for view in views); loss = nt_xent(z0, z1); ...
            if args.picture:
                augment.show(images, aug, step=epoch, count=4).save(args.picture)
                args.picture = None
        seconds = time.perf_counter() - start
        shape, where = tuple(views[0].shape[1:]), views[0].device
        print(f"epoch {epoch}: {made} views {shape} on {where}, {made / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
