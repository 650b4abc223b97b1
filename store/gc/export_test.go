package gc

var SweepBatch = &sweepBatch
