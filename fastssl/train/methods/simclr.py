"""SimCLR: two views of an image agree, views of different images do not.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from fastssl import NTXentLoss, cached_step
from fastssl.train import backbones, networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.method import Method
from fastssl.train.processes import everyone
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class SimCLRConfig(Config):
    """SimCLR's own keywords; temperature and projection size are those of the paper's B.9."""

    temperature: float = option(0.5, "Temperature of the loss.", least=1e-8)
    hidden: int = option(256, "Hidden units of the projector.", least=1)
    dim: int = option(128, "Size of the projections.", least=1)
    crop_scale: float | None = option(
        None, "Least share of the image in a crop, by default that of the recipe.", above=0, below=1
    )
    chunk_size: int | None = option(
        None, "Images that pass the encoder at a time, by default all of a step.", least=2
    )

    def __post_init__(self):
        super().__post_init__()
        if self.cuda_graph and self.chunk_size is not None:
            raise UsageError(
                f"cuda_graph: cannot be combined with chunk_size ({self.chunk_size}), which puts "
                f"random generators back on the host"
            )
        images = self.batch_size // self.devices
        if self.chunk_size is not None and images > 1 == images % self.chunk_size:
            raise UsageError(
                f"chunk_size: got {self.chunk_size}, leaves one of {images} images for the last "
                f"chunk, too few for batch norm"
            )


class SimCLR(Method):
    """SimCLR with the fused NT-Xent loss.

    The paper's setting for CIFAR-10 (appendix B.9) with AdamW instead of LARS, which the paper
    needs for batches of thousands. With several processes views are contrasted with those of all.

    With a chunk size, which each process counts for itself, batches may be larger than the
    encoder's memory: `fastssl.cached_step`. Batch norm then normalises chunk by chunk.
    """

    name = "simclr"
    Config = SimCLRConfig

    def __init__(self, config: SimCLRConfig, data: Data):
        super().__init__(config, data)
        self.backbone = backbones.encoder(config, data)
        self.projector = networks.mlp(self.backbone.features, config.hidden, config.dim)
        self.criterion = NTXentLoss(config.temperature, process_group=everyone())
        recipe = recipe_for(data)
        if config.crop_scale is not None:
            recipe = replace(recipe, scale=(config.crop_scale, 1.0))
        self.augment = same_size_views(data, [recipe] * 2, config)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """Two independent views, each float32 [N, C, H, W]."""
        return self.augment(images, sample_ids=sample_ids, step=step)

    def step(
        self, model: nn.Module, views: Sequence, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """With a chunk size, the step that embeds chunk by chunk."""
        size = self.config.chunk_size
        if size is None:
            return super().step(model, views, backward)
        _, logs = cached_step(model, views, self.contrast, chunk_size=size, backward=backward)
        return logs

    def forward(self, *views: Tensor) -> Tensor | dict[str, Tensor]:
        """What `contrast` returns for two views; for one, its projections [N, dim]."""
        z = [self.projector(self.backbone(view)) for view in views]
        return z[0] if len(z) == 1 else self.contrast(*z)[1]

    def contrast(self, z0: Tensor, z1: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, alone and with the mean cosine of the two views' projections: 1 if they agree.

        Args:
            z0: projections of the first view, [N, dim].
            z1: projections of the second view, [N, dim].
        """
        agreement = F.cosine_similarity(z0.detach(), z1.detach()).mean()
        loss = self.criterion(z0, z1)
        return loss, {"loss": loss, "agreement": agreement}
