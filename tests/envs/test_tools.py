"""The calculator, the conversation around it, and what a tool must not be able to do."""

import time

import pytest
from talk import EOS, MODEL, USER, plain, say, spelled, talk

from unirl_env.envs import Calculator
from unirl_env.envs.tools import ask_tool
from unirl_env.errors import ConfigError, ContractError
from unirl_env.types import Prompt


def calculated(call):
    return Calculator()(f"let me see <tool>{call}</tool>", Prompt("1+1"))


class TestCalculator:
    @pytest.mark.parametrize(
        ("call", "answer"),
        [
            ("1+1", "2"),
            ("2 * (3 + 4) - -5", "19"),
            ("7/2", "3.5"),
            ("8/2", "4"),
            ("1/3", "0.3333333333"),
            ("0.1+0.2", "0.3"),
            ("1e3*2", "2000"),
            ("\n 12\n * 12 ", "144"),
            ("99999999999999*99999999", "9999999899999900000001"),
        ],
    )
    def test_it_works_out(self, call, answer):
        assert calculated(call) == answer

    def test_only_the_last_call_counts(self):
        calculator, prompt = Calculator(), Prompt("x")
        assert calculator("<tool>1+1</tool> no: <tool>2+2</tool> so", prompt) == "4"
        assert calculator("<tool>1+<tool>2+2</tool>", prompt) == "4"
        for text in ("", "1+1", "<tool>1+1", "1+1</tool>", "</tool>1<tool>"):
            assert calculator(text, prompt) is None

    @pytest.mark.parametrize(
        ("call", "word"),
        [
            ("", "empty"),
            ("1+", "complete"),
            ("(1", "complete"),
            ("1 1", "complete"),
            ("()", "understood"),
            ("1)+(1", "complete"),
            ("1/0", "division by zero"),
            ("1/0.0", "division by zero"),
            ("01", "complete"),
            ("9**9**9**9", "understood"),
            ("9//2", "understood"),
            ("__import__('os').system('true')", "understood"),
            ("abs(1)", "understood"),
            ("e", "complete|understood"),
            ("1 if 1 else 2", "understood"),
            ("[1]*9", "understood"),
            ("'a'*9", "understood"),
            ("1e999", "digits"),
            ("1e308*10", "digits"),
            ("-1e29*11", "digits"),
            ("9" * 150, "digits"),
            ("9" * 201, "longer than 200 characters"),
            ("*".join(["9" * 29] * 6), "digits"),
            ("1\0+1", "understood"),
            ("\uff11+\uff11", "understood"),
        ],
    )
    def test_malformed_and_malicious_calls_get_an_error_in_words(self, call, word):
        begin = time.process_time()
        answer = calculated(call)
        assert time.process_time() - begin < 0.1
        assert answer.startswith("error: ") and any(part in answer for part in word.split("|"))

    def test_deep_nesting_is_worked_out_or_refused(self):
        assert calculated("(" * 99 + "1" + ")" * 99) in ("1", "error: the call is not a complete expression")
        assert calculated("-" * 199 + "1") == "-1"

    def test_a_flood_of_marks_costs_no_time(self):
        begin = time.process_time()
        assert Calculator()("<tool>" * 20_000, Prompt("x")) is None
        assert time.process_time() - begin < 1


class TestConversation:
    def test_a_reply_is_context_and_the_next_turn_goes_on(self):
        env = talk(num_envs=1, max_new_tokens=40, tool=Calculator(), autoreset_mode="disabled")
        start = int(env.reset(seed=0, options={"prompts": ["q"]})[0]["length"][0])
        call = "<tool>6*7<" + "/tool>~"
        obs, _, terminated, truncated, info = say(env, call)[-1]
        reply = [USER, *spelled("42"), EOS, MODEL]
        said, end = plain(obs["tokens"])[0], int(obs["length"][0])
        assert not terminated[0] and not truncated[0] and "samples" not in info
        assert said[start + len(call) : end].tolist() == reply
        assert plain(obs["is_action"])[0, start:end].tolist() == [1] * len(call) + [0] * len(reply)
        obs, _, terminated, _, info = say(env, "42~")[-1]
        assert terminated[0] and info["samples"][0].text == "42"
        expected = [*spelled(call[:-1]), EOS, *reply, *spelled("42"), EOS]
        assert info["samples"][0].tokens.tolist() == expected
        assert plain(obs["is_action"])[0].sum() == len(call) + 3

    def test_the_tool_is_asked_at_each_end_of_a_turn_until_the_last(self):
        asked = []

        def echo(text, prompt):
            asked.append((text, prompt.text))
            return "ok"

        env = talk(num_envs=1, max_new_tokens=40, tool=echo, max_turns=3)
        env.reset(seed=0, options={"prompts": ["q"]})
        assert [bool(result[2][0]) for result in say(env, "a~b~c~")] == [False] * 5 + [True]
        assert asked == [("a", "q"), ("b", "q")]
        asked.clear()
        env = talk(num_envs=1, tool=echo, max_turns=1)
        env.reset(seed=0)
        assert say(env, "~")[0][2][0] and not asked

    @pytest.mark.parametrize(
        ("limit", "truncated"),
        [(5, True), (6, True), (7, False)],
    )
    def test_a_reply_that_leaves_no_room_truncates(self, limit, truncated):
        """A turn of one letter, its end, and a reply of four tokens."""
        env = talk(num_envs=1, max_new_tokens=limit, tool=lambda text, prompt: "k")
        env.reset(seed=0)
        obs, _, over, cut, info = say(env, "a~")[-1]
        assert not over[0] and cut[0] == truncated
        assert obs["length"][0] - obs["prompt_length"][0] == (2 if truncated else 6)
        if truncated:
            sample = info["samples"][0]
            assert (sample.text, sample.truncated, len(sample.tokens)) == ("a", True, 2)

    def test_the_end_of_a_turn_exactly_at_the_limit(self):
        for answer, ends in ((None, (True, False)), ("ok", (False, True))):
            env = talk(num_envs=1, max_new_tokens=2, tool=lambda text, prompt, answer=answer: answer)
            env.reset(seed=0)
            *_, (_, _, over, cut, _) = say(env, "a~")
            assert (over[0], cut[0]) == ends

    def test_a_failing_tool_is_named_and_changes_nothing(self):
        failing = [True]

        def tool(text, prompt):
            if failing[0]:
                raise OSError("no network")
            return "ok"

        env = talk(num_envs=2, max_new_tokens=20, tool=tool, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0, options={"prompts": ["q", "r"]})
        with pytest.raises(ContractError, match=r"`tool` must answer .* OSError: no network for prompt 'q'"):
            say(env, "~", "a")
        assert say(env, "_", "_")[0][0]["tokens"].tolist() == obs["tokens"].tolist()
        failing[0] = False
        assert not say(env, "~", "a")[0][2].any()

    def test_replies_survive_snapshots(self):
        env = talk(num_envs=2, max_new_tokens=30, tool=lambda text, prompt: "ok", max_turns=2)
        env.reset(seed=0)
        say(env, "a~", "bc")
        snapshot = env.snapshot()
        ends = []
        for _ in range(2):
            env.restore(snapshot)
            obs, _, over, _, info = say(env, "x~", "~y")[-1]
            ends.append((obs["tokens"].tolist(), over.tolist(), info["samples"][0].text))
        assert ends[0] == ends[1] and ends[0][1:] == ([True, False], "x")

    @pytest.mark.parametrize("answer", [3, b"ok", ["ok"]])
    def test_what_is_no_text_is_refused(self, answer):
        with pytest.raises(ContractError, match=r"must answer with a text or None, got (int|bytes|list)"):
            ask_tool(lambda text, prompt: answer, "", Prompt("q"))

    def test_the_librarys_own_errors_pass_through(self):
        def tool(text, prompt):
            raise ConfigError("no key")

        with pytest.raises(ConfigError, match="no key"):
            ask_tool(tool, "", Prompt("q"))
