from magma_loss_spike import LossSpike

from magma import testing

test_loss_spike = testing.conformance(LossSpike)
