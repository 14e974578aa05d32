"""Other libraries inside our ranks, as a user's functions; told by `tests/two_ranks.py`."""

import torch
from torch.nn.functional import mse_loss


def accelerated(world):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from two_ranks import gather, make, make_data

    from scalekit.train.foreign import check_world, export_world

    for state in (AcceleratorState, PartialState):  # of the case before
        state._reset_state()
    model, _ = make()
    with export_world():
        accelerator = Accelerator(cpu=True)
        check_world(accelerator)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*make_data()), batch_size=5)
        prepared, optimizer, loader = accelerator.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.1), loader
        )
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(mse_loss(prepared(x), y))
            optimizer.step()
    return gather(model)


def accelerate_untold(world):
    "As it goes wrong without a word: no environment says which rank this is"
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    from scalekit.core import ScaleKitError
    from scalekit.train.foreign import check_world

    for state in (AcceleratorState, PartialState):
        state._reset_state()
    try:
        check_world(Accelerator(cpu=True))
    except ScaleKitError as error:
        return str(error)


def fabricated(world):
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from two_ranks import gather, make, make_data

    from scalekit.train.foreign import check_world, export_world

    model, _ = make()
    with export_world():
        strategy = DDPStrategy(cluster_environment=TorchElasticEnvironment())
        fabric = Fabric(accelerator="cpu", devices=1, num_nodes=world.size, strategy=strategy)
        fabric.launch()
        check_world(fabric)
        prepared, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*make_data()), batch_size=5)
        for x, y in fabric.setup_dataloaders(loader):
            optimizer.zero_grad()
            fabric.backward(mse_loss(prepared(x), y))
            optimizer.step()
    return gather(model)


def fabric_untold(world):
    "Without the strategy that knows others have started the processes"
    from lightning_fabric import Fabric

    from scalekit.core import ScaleKitError
    from scalekit.train.foreign import check_world

    try:
        check_world(Fabric(accelerator="cpu", devices=1))
    except ScaleKitError as error:
        return str(error)
