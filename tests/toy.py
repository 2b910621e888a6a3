"""A training so small that its every step can be looked at."""

from pathlib import Path
from types import SimpleNamespace

import torch
from conftest import QUICKSTART
from torch import nn

from vitas import cli, recipe
from vitas.data.batches import Batch
from vitas.data.splits import Unreadable
from vitas.report import tracking
from vitas.runs.accelerator import make_accelerator
from vitas.sections import Retraining
from vitas.spaces.architecture import Architecture, Block
from vitas.train import stop, trainer


class Toy(nn.Module):
    """Two classes of images; as large as it is told to be at the third forward."""

    def __init__(self, forget: int = 0):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.forget, self.calls = nn.Linear(3, 2), forget, 0

    def forward(self, images, architecture):
        self.calls += 1
        if self.calls == 3 and self.forget:
            torch.empty(self.forget)
        return self.head(images.mean((2, 3)))


ARCHITECTURE = Architecture(
    image_size=8, patch_size=4, embed_dim=8, blocks=(Block(heads=1, qkv_dim=9, mlp_dim=8), None)
)


def toy_images(step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and labels of a step."""
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    return images, toy_labels(images)


def toy_labels(images: torch.Tensor) -> torch.Tensor:
    return (images.mean((1, 2, 3)) > 0).long()


def toy_data(batches, unreadable: Unreadable | None = None) -> SimpleNamespace:
    """What a trainer asks of its data. The images are floats, which normalising leaves as they are."""
    as_they_are = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    account = unreadable or Unreadable("toy")
    return SimpleNamespace(size=8, batches=batches, unreadable=account, num_classes=2, seed=0, **as_they_are)


def toy_training(folder: str, changes: dict, bad: list[int], forget: int = 0, damaged: tuple[int, ...] = ()) -> int:
    """The work of a rank: trains a toy for 12 steps. The last rank sees images that are not a number at steps `bad`.

    At steps `damaged` each rank finds an image that cannot be read; there may be four of them.
    """
    quickstart = recipe.load(QUICKSTART, [f"output={folder}"])
    settings = Retraining(**({"epochs": 12, "warmup_epochs": 1, "batch_size": 8, "checkpoint_every": 2} | changes))

    def work() -> None:
        accelerator = make_accelerator(quickstart)

        def batches(plan):
            for step in range(plan.start, plan.stop):
                whole, _ = toy_images(step, plan.batch_size)
                for turn in range(plan.accumulation):
                    images = whole.view(plan.world, plan.accumulation, plan.micro_batch, 3, 8, 8)[plan.rank, turn]
                    spoil = step in bad and plan.rank == plan.world - 1 and turn == 0
                    found = {f"image {step} of rank {plan.rank}": "damaged"} if step in damaged and turn == 0 else {}
                    yield Batch(images * float("nan") if spoil else images, toy_labels(images), found)

        file, key = Path(folder) / "unreadable.json", {} if accelerator.is_main_process else None

        trainer.Trainer(
            accelerator=accelerator,
            model=Toy(forget),
            settings=settings,
            folder=Path(folder) / "retrain",
            stage="retrain",
            data=toy_data(batches, Unreadable("toy", most=4, file=file, key=key)),
            inputs=lambda step: (ARCHITECTURE,),
            tracker=tracking.Tracker(quickstart, accelerator),
            stop=stop.StopRequest(),
        ).run()

    (Path(folder) / "quickstart").mkdir(parents=True, exist_ok=True)
    return cli._guarded(work)
