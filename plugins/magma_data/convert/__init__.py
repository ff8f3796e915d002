"""`magma data convert`, `check` and `show`: published data sets from their official files to WebDataset shards."""
