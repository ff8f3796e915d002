"""A callback that watches the loss: it logs a warning for each spike, and stops the training after several of them."""

import logging

from pydantic import Field

import magma


class LossSpike(magma.Callback):
    """Warns if the loss is far above its moving average, and stops the training after some spikes."""

    name = "loss_spike"

    class Config(magma.PartConfig):
        factor: float = Field(3.0, gt=1)
        """A loss above `factor` times the moving average is a spike. It does not change the average."""
        decay: float = Field(0.95, ge=0, lt=1)
        """Of the moving average."""
        patience: int = Field(3, ge=1)
        """Spikes after which the training stops."""

    def __init__(self, config):
        super().__init__(config)
        self.average, self.spikes = None, []

    @classmethod
    def check_inputs(cls, folder):
        return magma.CheckInputs({"patience": 2})

    def on_step_end(self, context):
        loss, config = context.metrics["loss"], self.config
        if loss is None:  # it is not finite: the trainer has skipped the step
            return
        if self.average is None or loss <= config.factor * self.average:
            self.average = loss if self.average is None else config.decay * self.average + (1 - config.decay) * loss
            return
        self.spikes.append(context.step)
        message = f"the loss is {loss:.4g}, and {self.average:.4g} on average (spikes at steps {self.spikes})"
        if context.rank == 0:
            logging.getLogger(__name__).warning("step %d: %s", context.step, message)
        if len(self.spikes) >= config.patience:
            self.spikes = []  # a resumed run gets as many again
            context.request_stop(message)

    def state_dict(self):
        return {"average": self.average, "spikes": self.spikes}

    def load_state_dict(self, state):
        self.average, self.spikes = state["average"], list(state["spikes"])


@magma.hookimpl
def magma_parts():
    return [LossSpike]
