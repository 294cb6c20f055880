"""Files of pairs scored shard by shard, so that a run can be killed and go on; knows no Ray."""
