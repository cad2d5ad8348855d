"""Local runs of LoraTrainingJobs, without a cluster. Stages run as processes; the store is SeaweedFS on loopback."""
