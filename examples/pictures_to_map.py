"""From pictures to a map of what they show, without labels.

    python examples/pictures_to_map.py [--data folder:PATH] [--epochs N] [--out FOLDER]

Or cell by cell, in an editor that knows `# %%`. The handwritten digits that scikit-learn ships are
the default, and need no download.
"""

# %% What to look at, and where to write.
import argparse
from pathlib import Path

import torch

from fastssl.train import open_run, pictures, pretrain
from fastssl.train.evaluation import extract, tables
from fastssl.train.pictures.maps import tsne

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--data", default="digits")
parser.add_argument("--epochs", type=int, default=40)
parser.add_argument("--out", type=Path, default=Path("out/pictures-to-map"))
args = parser.parse_args()

# %% Train: two views of a picture shall agree, views of different pictures shall not.
# Cells cannot be started again by processes that read ahead: no workers.
options = {"epochs": args.epochs, "out": args.out, "overwrite": True, "workers": 0}
run = pretrain("simclr", data=args.data, **options)

# %% What did it learn? Labels, if there are any, serve to measure it; no gradient came from them.
print(tables.markdown(run.rows, run.task))

# %% The encoder is an ordinary module: pictures in, features out.
saved = open_run(run.out)
features = extract(run.backbone, saved.data, torch.device("cpu"))
print(f"{len(features.test)} test pictures, {features.test.shape[1]} features each")

# %% Which pictures are alike? The cosine of their features says so.
test = torch.nn.functional.normalize(torch.from_numpy(features.test))
nearest = (test @ test.T).fill_diagonal_(-1).argmax(1)
if saved.data.classes:
    labels = saved.data.test.labels
    alike = (labels == labels[nearest]).float().mean()
    print(f"{alike:.1%} of them have a nearest neighbour of their own class")

# %% The map, coloured by class.
figure = tsne({"SimCLR": features.test}, saved.data.test.labels.numpy(), saved.data.classes, seed=0)
print(f"written to {pictures.save(run.out / 'map.png', figure)}")
