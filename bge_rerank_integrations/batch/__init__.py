"""Files of pairs, scored shard by shard on Ray Data; a killed run can be resumed."""
