"""Texts, and pictures of tokens: an engine proposes whole answers, and the environment steps through them.

Every answer is walked through `env.step` token by token, so that termination, tools, wrappers and rewards
have one code path, whoever generates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from unirl_env.envs.token_rows import WAIT
from unirl_env.episode import Phase, cat_padded, distinct
from unirl_env.errors import ConfigError, ContractError, EngineLost, StaleWeights
from unirl_env.models.words import Encoded
from unirl_env.policies.actor import Actor
from unirl_env.policies.routing import ROUTES
from unirl_env.rollouts.driver import Driver, LiveEpisodes, RolloutRequest
from unirl_env.rollouts.drivers.routes import Routes
from unirl_env.rollouts.engines.base import Answer, Engine, Request

PATIENCE = 3
"""Times that an engine may be lost over the same requests before it counts as gone for good."""


class TextDriver(Driver):
    """Writes the texts of all episodes to their ends.

    An engine that is lost on the way is restarted and given its weights again, and what it was asked is asked
    once more. The environment stands still meanwhile: no token, tool or score counts twice.

    Args:
        engine: What generates.
        actor: The policy, whose weights a restarted engine is given; None takes the engine's own.
    """

    def __init__(self, engine: Engine, actor: Actor | None = None):
        self.engine = engine
        self.actor = getattr(engine, "actor", None) if actor is None else actor

    def check(self, request: RolloutRequest) -> None:
        """Refuse to play with other weights than the request's.

        Raises:
            StaleWeights: If the engine holds another version.
        """
        held, wanted = self.engine.weights_version, request.weights_version
        if not request.base and held not in (None, wanted):
            raise StaleWeights(
                f"The engine must hold weights of version {wanted}, got version {held}; publish the weights "
                "before collecting."
            )

    def load_weights(self, version: int) -> None:
        """Give the engine the actor's present weights under the name `version`; a lost one is restarted once.

        Raises:
            ConfigError: If there is no actor.
            EngineLost: If it is lost again.
        """
        if self.actor is None:
            raise ConfigError("`actor` must be given to load weights into an engine without one, got None.")
        try:
            self.engine.load_weights(version, self.actor)
        except EngineLost:
            self.engine.restart()
            self.engine.load_weights(version, self.actor)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase | None:
        """Write until all texts are at their ends.

        Raises:
            ContractError: If the engine does not answer as it must.
            EngineLost: If the engine is lost again and again.
        """
        if not live.get_attr("max_new_tokens"):
            return None
        hybrid = "phase" in live.obs
        model = live.get_attr("unified_model").text if hybrid else live.get_attr("language_model")
        log_prob = torch.zeros(len(live), live.obs["tokens"].shape[1])
        routes = Routes(len(live)) if getattr(self.actor, "routing", None) is not None else None
        while (writing := _writing(live)).any():
            rows = writing.nonzero().flatten()
            asked = _requests(live, rows)
            answers = self.ask(asked, request)
            places = [each.position for each in asked]
            if routes is not None:
                routes.add(answers, asked, rows.tolist())
            for token in _lay_out(answers, rows, places, model.eos_ids, log_prob):
                live.step({"token": token} if hybrid else token)
                if not _writing(live).any():
                    break
        self.engine.join(base=request.base)
        return _token_phase(live.obs, live.get_attr("encodings"), model.input_spaces, log_prob, routes)

    def ask(self, requests: Sequence[Request], request: RolloutRequest) -> list[Answer]:
        """The engine's answers, if need be after a restart.

        Args:
            requests: What each episode asks.
            request: What they are a part of.

        Raises:
            ContractError: If they are not one for each request, or too long.
            EngineLost: If the engine is lost again and again.
        """
        for losses in range(PATIENCE):
            try:
                if losses:
                    self.engine.restart()
                    self.load_weights(request.weights_version)
                answers = self.engine.generate(
                    requests, temperature=self._temperature(request), base=request.base
                )
                return _checked(answers, requests)
            except EngineLost as error:
                cause = error
        raise EngineLost(
            f"The engine must survive its requests, got lost {PATIENCE} times over the same "
            f"{len(requests)}: {cause}"
        ) from cause

    def _temperature(self, request: RolloutRequest) -> float | None:
        return request.temperature


class PictureTokenDriver(TextDriver):
    """Draws the pictures, token by token, of all episodes that have come to theirs.

    They are drawn at the policy's own temperature, whatever texts are written at.
    """

    def play(self, live: LiveEpisodes, request: RolloutRequest) -> Phase:
        """Draw until all pictures are whole; episodes without one have no tokens in the phase."""
        obs, model = live.obs, live.get_attr("unified_model")
        count, width = len(live), model.image.num_tokens
        rows = (~live.done).nonzero().flatten()
        texts, length = torch.as_tensor(obs["tokens"]), torch.as_tensor(obs["length"])
        encodings, log_prob = live.get_attr("encodings"), torch.zeros(count, width)
        if len(rows):
            requests = [
                Request(
                    tokens=tuple(texts[row, : length[row]].tolist()),
                    prompt=live.prompts[row],
                    inputs=encodings[row].inputs,
                    seed=int(live.seeds[row]),
                    # Behind every place that a text can have: its draws are never drawn again.
                    position=live.get_attr("max_new_tokens"),
                    max_new_tokens=width,
                )
                for row in rows.tolist()
            ]
            for token in _lay_out(self.ask(requests, request), rows, [0] * len(rows), (), log_prob):
                live.step({"image_token": token})
        self.engine.join(base=request.base)
        drawn = torch.as_tensor(live.obs["image_tokens"])
        tokens = torch.nn.functional.pad(texts, (0, width))
        place = length[:, None] + torch.arange(width, device=texts.device)
        has = torch.zeros(count, dtype=torch.bool, device=texts.device)
        has[rows.to(texts.device)] = True
        tokens[has] = tokens[has].scatter(1, place[has], drawn[has])
        whole = {
            "tokens": tokens,
            "is_action": torch.arange(tokens.shape[1], device=texts.device) >= length[:, None],
            "prompt_length": length,
            "length": length + has * width,
        }
        # Each episode has a text of its own, which is the context of its picture.
        own = [replace(encoded) for encoded in encodings]
        return _token_phase(whole, own, model.text.input_spaces, log_prob)

    def _temperature(self, request: RolloutRequest) -> float | None:
        return None


def _writing(live: LiveEpisodes) -> Tensor:
    """`[B]` bool, on the CPU, which episodes are in the middle of their text."""
    if "phase" not in live.obs:
        return ~live.done
    return ~live.done & (torch.as_tensor(live.obs["phase"]).cpu() == 0)


def _requests(live: LiveEpisodes, rows: Tensor) -> list[Request]:
    """What is asked for the episodes at `rows` `[b]`, whose texts are unfinished."""
    tokens, length, prompt_length = (
        torch.as_tensor(live.obs[name])[rows].tolist() for name in ("tokens", "length", "prompt_length")
    )
    encodings, most = live.get_attr("encodings"), live.get_attr("max_new_tokens")
    return [
        Request(
            tokens=tuple(tokens[i][: length[i]]),
            prompt=live.prompts[row],
            inputs=encodings[row].inputs,
            seed=int(live.seeds[row]),
            position=length[i] - prompt_length[i],
            max_new_tokens=most - (length[i] - prompt_length[i]),
        )
        for i, row in enumerate(rows.tolist())
    ]


def _checked(answers: list[Answer], requests: Sequence[Request]) -> list[Answer]:
    """The answers of an engine, one for each request and none too long.

    Raises:
        ContractError: If they are not.
    """
    if len(answers) != len(requests):
        raise ContractError(
            f"An engine must answer all {len(requests)} requests, got {len(answers)} answers."
        )
    for answer, request in zip(answers, requests, strict=True):
        if not 1 <= len(answer.tokens) <= request.max_new_tokens:
            raise ContractError(
                f"An engine must answer with 1 to {request.max_new_tokens} tokens, got "
                f"{len(answer.tokens)} for prompt {request.prompt.id[:60]!r}."
            )
    return answers


def _lay_out(
    answers: Sequence[Answer],
    rows: Tensor,
    places: Sequence[int],
    eos_ids: Sequence[int],
    log_prob: Tensor,
) -> Tensor:
    """Answers as actions, one row per step; notes their log-probabilities.

    Args:
        answers: `b` of them.
        rows: `[b]` int64, the episode of each.
        places: `[b]`, how many tokens follow the prompt of each episode so far.
        eos_ids: What stands after one of these is not an action: a tool may have the word.
        log_prob: `[B, S]` float32, of each episode's tokens by their places after the prompt; changed.

    Returns:
        `[n, B]` int64, `WAIT` where an episode has nothing to say.
    """
    counts = torch.tensor([len(answer.tokens) for answer in answers])
    token = torch.tensor([*chain.from_iterable(answer.tokens for answer in answers)])
    said = torch.tensor([*chain.from_iterable(answer.log_probs for answer in answers)])
    episode = rows.cpu().repeat_interleave(counts)
    step = torch.arange(len(token)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    log_prob[episode, step + torch.tensor(places).repeat_interleave(counts)] = said
    actions = torch.full((int(counts.max()), len(log_prob)), WAIT)
    actions[step, episode] = token
    ended = torch.isin(actions, torch.tensor(list(eos_ids), dtype=torch.int64)).int()
    actions[ended.cumsum(0) > ended] = WAIT
    return actions


def _token_phase(
    obs: Mapping[str, Any],
    encodings: Sequence[Encoded],
    input_spaces: Mapping[str, tuple[tuple[int, ...], str]],
    log_prob: Tensor,
    routes: Routes | None = None,
) -> Phase:
    """The finished texts, or pictures of tokens, as a phase.

    Args:
        obs: The last observation, of the torch backend.
        encodings: B prompts as the model reads them; episodes with the same one share a row of the context.
        input_spaces: The model's.
        log_prob: `[B, S]` float32, what `_lay_out` noted.
        routes: Which experts read the tokens, where that is recorded.
    """
    tokens, is_action = torch.as_tensor(obs["tokens"]), torch.as_tensor(obs["is_action"]).bool()
    length, prompt_length = torch.as_tensor(obs["length"]), torch.as_tensor(obs["prompt_length"])
    device = tokens.device
    count = length - prompt_length
    place = torch.arange(int(count.max()), device=device)
    said = place < count[:, None]
    index = (prompt_length[:, None] + place).clamp_max(tokens.shape[1] - 1)
    mask = said & is_action.gather(1, index)
    first, row = distinct([id(encoded) for encoded in encodings])
    first = first.to(device)
    prompt = tokens[first, : int(prompt_length.max())]
    outside = torch.arange(prompt.shape[1], device=device) >= prompt_length[first][:, None]
    observation, of_prompts = {}, {}
    if routes is not None:
        observation[ROUTES] = routes.of_texts(prompt_length.tolist(), length.tolist()).to(device)
        rows, sizes = first.tolist(), prompt_length[first].tolist()
        of_prompts["prompt_routes"] = routes.of_prompts(rows, sizes).to(device)
    return Phase(
        observation=observation,
        action=torch.where(said, tokens.gather(1, index), -1),
        log_prob=torch.where(mask, log_prob[:, : len(place)].to(device), 0.0),
        mask=mask,
        context={
            "prompt": prompt.masked_fill(outside, 0),
            "prompt_length": prompt_length[first],
            **of_prompts,
            **{
                name: _inputs([encodings[i].inputs.get(name) for i in first.tolist()], *space).to(device)
                for name, space in input_spaces.items()
            },
        },
        context_row=row.to(device),
        ragged=True,
    )


def _inputs(values: Sequence[Tensor | None], shape: Sequence[int], dtype: str) -> Tensor:
    """`[P, ...]`, as wide as the widest value; what a prompt has not is zeros."""
    nothing, kind = torch.empty(0, *shape[1:]), getattr(torch, dtype)
    return cat_padded([(nothing if value is None else value)[None].to(kind) for value in values])
