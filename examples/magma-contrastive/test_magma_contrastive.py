from magma_contrastive import ContrastiveLinear

from magma import testing

test_contrastive_linear = testing.conformance(ContrastiveLinear)
