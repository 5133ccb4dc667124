"""Training jobs: from a data file to a published adapter. Start at `trainer.job.Job` and `trainer.loop.run_job`."""
