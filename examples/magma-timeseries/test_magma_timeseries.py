from magma_timeseries import TimeSeries

from magma import testing

test_timeseries = testing.conformance(TimeSeries)
