"""What is watched while a policy learns: scores, the variety of samples, and whether a reward is exploited."""
