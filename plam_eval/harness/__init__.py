"""What is known of lmms-eval. For now its tasks (`tasks`); the rest is in `plam_eval.evaluation.harness`."""
