"""Fine-tuning: the whole encoder learns from the labels that are shown."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.evaluation.features import encode
from fastssl.train.evaluation.linear import batches, zero_layer
from fastssl.train.views import recipe_for, same_size_views, to_float

#: Passes over the labels, samples per step, and fewest steps.
EPOCHS, BATCH, FEWEST = 10, 128, 100

#: Peak rates of AdamW for the encoder and the new layer, and its weight decay.
RATE, HEAD_RATE, DECAY = 1e-3, 1e-2, 0.05


def finetune(
    encoder: nn.Module, data: Data, ids: Tensor, seed: int, device: torch.device
) -> Tensor:
    """Predictions of a copy of an encoder and a linear layer, trained together.

    With an untrained encoder this is training from scratch, for as many steps. AdamW with the rate,
    weight decay and cosine of He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022,
    table 9, and before the linear layer, as in their linear probe, normalisation without learned
    scale; that layer, which has nothing to lose and few steps, learns ten times as fast. Random
    crops and mirror images alone, as Chen et al., "A Simple Framework for Contrastive Learning of
    Visual Representations", 2020, appendix B.5, fine-tune. Texts are taken as they are.

    Args:
        encoder: left as it is; parameters that are frozen in it learn in the copy.
        data: the training samples and the test samples.
        ids: training samples whose labels are shown, int64 [n].
        seed: fixes order and crops.
        device: where to compute.

    Returns:
        int64 [M], of all test samples, on the CPU.
    """
    encoder = copy.deepcopy(encoder).requires_grad_(True)
    labels = data.train.labels[ids]
    layer = zero_layer(encoder.features, labels)
    norm = nn.BatchNorm1d(encoder.features, affine=False)
    model = nn.Sequential(encoder, norm, layer).to(device).train()
    count = len(ids)
    batch = min(BATCH, count)
    steps = max(FEWEST, EPOCHS * (count // batch))
    groups = [{"params": list(part.parameters())} for part in (encoder, layer)]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [RATE, HEAD_RATE], steps, pct_start=0.1, cycle_momentum=False
    )
    view = _views(data, seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # For encoders with dropout.
        torch.manual_seed(seed)
        for step, order in enumerate(batches(count, batch, steps, seed)):
            inputs = view(data.train.inputs[ids[order]].to(device), ids[order].to(device), step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels[order].to(device)).backward()
            optimizer.step()
            schedule.step()
    return encode(model, data.test.inputs, device).argmax(1)


def _views(data: Data, seed: int):
    if data.kind == "texts":
        return lambda inputs, sample_ids, step: to_float(inputs)
    recipe = replace(recipe_for(data), jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
    augment = same_size_views(data, [recipe], Config(seed=seed))
    return lambda inputs, sample_ids, step: augment(inputs, sample_ids=sample_ids, step=step)[0]
