"""Callbacks that further processes can import."""

from ray.rllib.callbacks.callbacks import RLlibCallback


class Diary(RLlibCallback):
    """Writes down what it is told, in the order in which it is told."""

    lines = []

    def on_algorithm_init(self, *, algorithm, metrics_logger, **kwargs):
        self.lines.append(("init", algorithm.iterations_done))

    def on_environment_created(self, *, env_runner, metrics_logger, env, env_context, **kwargs):
        self.lines.append(("environment", env.num_envs, env_context.worker_index))

    def on_episode_created(self, *, episode, env_runner, metrics_logger, env, rl_module, env_index, **kwargs):
        assert len(episode) == 0 and not episode.is_done and episode.get_return() == 0.0
        episode.custom_data["seen"] = [env_index]

    def on_episode_start(self, *, episode, env_runner, metrics_logger, env, rl_module, env_index, **kwargs):
        episode.custom_data["seen"].append("start")

    def on_episode_end(
        self, *, episode, prev_episode_chunks, env_runner, metrics_logger, env, env_index, rl_module, **kwargs
    ):
        assert episode.custom_data["seen"] == [env_index, "start"] and prev_episode_chunks == []
        assert rl_module is env_runner.module and env is env_runner.env.unwrapped
        stage = "evaluated" if env_runner.config.in_evaluation else "trained"
        metrics_logger.log_value(stage, 1, reduce="sum")
        metrics_logger.log_value(("mine", "return"), episode.get_return(), reduce="mean")

    def on_sample_end(self, *, env_runner, metrics_logger, samples, **kwargs):
        self.lines.append(("samples", len(samples), samples[0].evaluating))

    def on_train_result(self, *, algorithm, metrics_logger, result, **kwargs):
        result["mine"] = result["env_runners"]["mine"]["return"]

    def on_evaluate_start(self, *, algorithm, metrics_logger, **kwargs):
        self.lines.append(("evaluate", algorithm.iterations_done))

    def on_evaluate_end(self, *, algorithm, metrics_logger, evaluation_metrics, **kwargs):
        evaluation_metrics["twice"] = 2 * evaluation_metrics["env_runners"]["episode_return_mean"]


class Counts(RLlibCallback):
    def on_episode_end(self, *, episode, metrics_logger, **kwargs):
        metrics_logger.log_value("my_length", len(episode), reduce="mean")
