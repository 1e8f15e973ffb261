"""Reading policy files: what is refused, where, and in which words."""
# ruff: noqa: E501

import functools
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from jsonschema.validators import validator_for
from msgspec.structs import replace

from policies.checker import check, parse, schema
from policies.conditions import Situation, compile_when
from policies.model import BackendCard, BudgetState, Facts, Policy, When
from policies.problems import PolicyError
from policies.reachability import covers
from tests.policies import strategies as any_

DEFAULT = '[default]\nroute = "small"\n'
KNOWN = {"nano", "small"}


def rule(body: str) -> str:
    return f'[[rules]]\nname = "r"\n{body}\n\n{DEFAULT}'


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("x = [", "", "not valid TOML"),
        ("", "default", "a default is required"),
        (rule("route = 'nano'\nfallback = ['small']"), "rules[0].fallback", "did you mean 'fallbacks'?"),
        (rule("route = 'nano'\nwhen = {tasks = ['code']}"), "rules[0].when.tasks", "did you mean 'task'?"),
        (rule("route = 'nano'\nwhen = {turns = {minimum = 2}}"), "rules[0].when.turns.minimum", "allowed: min, max"),
        (rule("cascade = ['nano']"), "rules[0].cascade", "at least two"),
        (rule("cascade = ['nano', 'nano']"), "rules[0].cascade[1]", "before it already"),
        (rule("cascade = ['nano', '*']"), "rules[0].cascade[1]", "name a tier or a backend"),
        (rule("cascade = ['nano', 'small']\naccept = {judge='small'}"), "rules[0].accept.judge", "'small': allowed: answer, logprob"),
        (rule("cascade = ['nano', 'small']\naccept = {judge='backend:'}"), "rules[0].accept.judge", "backend:NAME"),
        (rule("cascade = ['nano', 'small']\naccept = {min = 7.0}"), "rules[0].accept.min", "7.0: a probability"),
        (rule("cascade = ['nano', 'small']\naccept = {skip_gain = nan}"), "rules[0].accept.skip_gain", "a probability"),
        (rule("cascade = ['nano', 'small']\naccept = {n = 1}"), "rules[0].accept.n", "2 to 16"),
        (rule("cascade = ['nano', 'small']\naccept = {minimum = 0.5}"), "rules[0].accept.minimum", "allowed: judge, min"),
        (rule("route = 'nano'\naccept = {judge='logprob', min=0.5}"), "rules[0].accept", "without effect without cascade"),
        (rule("objective = {minimise = 'cost'}"), "rules[0].objective.min_quality", "missing"),
        (rule("objective = {minimise = 'cost', min_quality = 8.0}"), "rules[0].objective.min_quality", "8.0: a probability"),
        (rule("objective = {minimise = 'price', min_quality = 0.8}"), "rules[0].objective.minimise", "allowed: cost"),
        (rule("objective = {minimise = 'cost', min_quality = 0.8, mu_latency_s = 1.0}"), "rules[0].objective.mu_latency_s", "without effect"),
        (rule("objective = {maximise = 'quality', minimise = 'cost'}"), "rules[0].objective", "exactly one of minimise"),
        (rule("objective = {maximise = 'quality', max_cost = 1}"), "rules[0].objective.max_cost", "did you mean 'max_cost_usd'?"),
        (rule("objective = {maximise = 'quality', lambda_cost_usd = -1.0}"), "rules[0].objective.lambda_cost_usd", "0 or more"),
        (rule("objective = {maximise = 'quality', min_quality = 0.5}"), "rules[0].objective.min_quality", "without effect"),
        (rule("objective = {maximise = 'quality', per = 'day'}"), "rules[0].objective.max_cost_usd", "missing"),
        (rule("objective = {maximise = 'quality', among = []}"), "rules[0].objective.among", "at least one"),
        (rule("when = {task = ['code']}"), "rules[0].route", "exactly one of route, split, cascade, objective, deny; has none"),
        (rule("route = 'nano'\ndeny = 'no'"), "rules[0].deny", "has route and deny"),
        (rule("route = 'nano'\nwhen = {task = ['coding']}"), "rules[0].when.task[0]", "allowed: chat, knowledge"),
        (rule("route = 'nano'\ncache = 'all'"), "rules[0].cache", "allowed: off, exact, semantic"),
        (rule("route = 'nano'\nwhen = {difficulty = {min = 0.5, max = 0.5}}"), "rules[0].when.difficulty", "matches nothing"),
        (rule("route = 'nano'\nwhen = {turns = {}}"), "rules[0].when.turns", "give min, max or both"),
        (rule("route = 'nano'\nwhen = {load = {backend = 'nano'}}"), "rules[0].when.load", "give min, max or both"),
        (rule("route = 'nano'\nwhen = {team = []}"), "rules[0].when.team", "matches nothing"),
        (rule("route = 'nano'\nwhen = {tags = {env = []}}"), "rules[0].when.tags.env", "at least one value"),
        (rule("route = 'nano'\nwhen = {hours = {from = '25:00', to = '09:00'}}"), "rules[0].when.hours.from", "'25:00': a time of day"),
        (rule("route = 'nano'\nwhen = {hours = {from = '09:00', to = '9'}}"), "rules[0].when.hours.to", "HH:MM"),
        (rule("route = 'nano'\nwhen = {hours = {from = '09:00', to = '09:00'}}"), "rules[0].when.hours.to", "same as from"),
        (rule("route = 'nano'\nwhen = {hours = {from = '09:00', to = '10:00', tz = 'Berlin'}}"), "rules[0].when.hours.tz", "no such time zone"),
        (rule("route = 'nano'\nwhen = {hours = {from = '09:00', to = '10:00', days = ['monday']}}"), "rules[0].when.hours.days[0]", "allowed: mon, tue"),
        (rule("split = {nano = 0.9, small = 0.0}"), "rules[0].split.small", "more than 0"),
        (rule("split = {nano = inf}"), "rules[0].split.nano", "more than 0"),
        (rule("split = {}"), "rules[0].split", "at least one"),
        (rule("route = 'nano'\nmax_tokens = 0"), "rules[0].max_tokens", "at least 1"),
        (rule("deny = ' '"), "rules[0].deny", "say why"),
        (rule("deny = 'no'\nfallbacks = ['nano']"), "rules[0].fallbacks", "without effect beside deny"),
        (rule("route = 7"), "rules[0].route", "7: Expected `str"),
        (rule("route = 'nano'\nwhen = {difficulty = {min = 'a'}}"), "rules[0].when.difficulty.min", "'a': Expected `float"),
        ("[rules]\nname = 'a'\nroute = 'nano'\n" + DEFAULT, "rules", "write [[rules]]"),
        ("second_look = 'now'\n" + DEFAULT, "second_look", "allowed: always, unsure, never"),
        (rule("route = 'nano'\nwhen = {tags = {a = ['b'], env = 'prod'}}"), "rules[0].when.tags.env", "'prod': Expected `array`"),
        (rule("split = {nano = 1.0, small = 'x'}"), "rules[0].split.small", "'x': Expected `float`"),
        ("[[rules]]\nroute = 'nano'\n" + DEFAULT, "rules[0]", "missing required field `name`"),
        ("[[rules]]\nname = 'default'\nroute = 'nano'\n" + DEFAULT, "rules[0].name", "is the name of [default]"),
    ],
)  # fmt: skip
def test_check_names_what_is_wrong(text: str, path: str, words: str) -> None:
    """Each mistake is an error with its key path, and says what is allowed."""
    errors = [problem for problem in check(text) if problem.level == "error"]
    assert [(problem.path, words in problem.message) for problem in errors] == [(path, True)]
    with pytest.raises(PolicyError) as caught:
        parse(text, "mine.toml")
    assert str(caught.value).startswith("mine.toml: ")
    assert words in str(caught.value)


def test_check_gives_the_line() -> None:
    """A problem says on which line its key stands, in the right rule."""
    text = (
        'description = "d"\n\n[[rules]]\nname = "a"\nroute = "nano"\n\n'
        '[[rules]]\nname = "b"\nroute = "nano"\n[rules.when]\nturns = { min = 3, max = 2 }\n\n'
        + DEFAULT
    )
    errors = [problem for problem in check(text) if problem.level == "error"]
    assert [(problem.path, problem.line) for problem in errors] == [("rules[1].when.turns", 11)]


def test_check_finds_all_errors_at_once() -> None:
    """Two mistakes in two rules are two errors."""
    text = (
        '[[rules]]\nname = "a"\nsplit = { nano = -1 }\nwhen = { turns = { min = 1 } }\n'
        '[[rules]]\nname = "a"\nroute = "nano"\nmax_tokens = -5\n' + DEFAULT
    )
    errors = [problem for problem in check(text) if problem.level == "error"]
    assert [(problem.path, problem.line) for problem in errors] == [
        ("rules[0].split.nano", 3),
        ("rules[1].name", 6),
        ("rules[1].max_tokens", 8),
    ]


def test_check_warns_of_rules_that_are_never_reached() -> None:
    """What follows a rule without conditions cannot decide: a warning, not an error."""
    text = '[[rules]]\nname = "all"\nroute = "nano"\n[[rules]]\nname = "late"\nroute = "nano"\n'
    problems = check(text + DEFAULT)
    assert [(p.level, p.path) for p in problems] == [
        ("warning", "rules[1]"),
        ("warning", "default"),
    ]
    assert "never reached: rule 'all'" in problems[0].message
    assert parse(text + DEFAULT).rules[1].name == "late"


def test_check_knows_which_targets_exist() -> None:
    """An unknown route is an error; beside "*" it is a warning, for somebody answers anyway."""
    wrong = '[default]\nroute = "smal"\nfallbacks = ["nano", "backend:nano"]\n'
    (problem,) = check(wrong, KNOWN)
    assert (problem.level, problem.path, problem.line) == ("error", "default.route", 2)
    assert problem.message == (
        "'smal': no such tier or backend; did you mean 'small'? known: nano, small"
    )
    goal = '[default]\nobjective = { maximise = "quality", among = ["nano", "bas"] }\n'
    assert [(p.level, p.path) for p in check(goal, KNOWN)] == [("error", "default.objective.among")]
    covered = '[default]\nroute = "base"\nfallbacks = ["*"]\n'
    assert [p.level for p in check(covered, KNOWN)] == ["warning"]
    assert check(covered) == []
    condition = rule(
        "route = 'nano'\nfallbacks = ['*']\nwhen = {load = {backend = 'base', min = 1.0}}"
    )
    condition += 'fallbacks = ["nano"]\n'
    assert [(p.level, p.path) for p in check(condition, KNOWN)] == [
        ("warning", "rules[0].when.load.backend")
    ]


def test_check_warns_of_a_target_that_stands_alone() -> None:
    """Without fallbacks one backend that is down is the end; a fleet of one has no other."""
    assert [
        (p.level, p.path)
        for p in check(rule("split = {nano = 1.0}\nwhen = {turns = {min = 1}}"), KNOWN)
    ] == [
        ("warning", "rules[0]"),
        ("warning", "default"),
    ]
    assert check(DEFAULT, {"small"}) == []


@pytest.mark.parametrize(
    "condition",
    [
        "difficulty = {min = 1.5}",
        "quality = {backend = 'nano', max = 0.0}",
        "budget_left = {min = 2}",
        "turns = {max = 0}",
        "load = {backend = 'nano', max = -1}",
        "prompt_tokens = {min = 10.2, max = 10.8}",
        "turns = {min = 3.5, max = 4}",
    ],
)
def test_check_warns_of_conditions_that_no_request_meets(condition: str) -> None:
    """A range beyond the figure's own limits matches nothing."""
    (problem,) = check(rule(f"route = 'nano'\nwhen = {{{condition}}}"))
    assert problem.level == "warning"
    assert problem.path == f"rules[0].when.{condition.split()[0]}"
    assert "matches nothing" in problem.message


@pytest.mark.parametrize(
    ("first", "second", "warned"),
    [
        ("task = ['code', 'maths']", "task = ['maths'], difficulty = {min = 0.5}", True),
        ("task = ['code']", "task = ['maths']", False),
        ("difficulty = {min = 0.3}", "difficulty = {min = 0.5, max = 0.7}", True),
        ("difficulty = {min = 0.3, max = 0.6}", "difficulty = {min = 0.5}", False),
        ("quality = {backend = 'a', min = 0.3}", "quality = {backend = 'b', min = 0.3}", False),
        ("wants = ['json']", "wants = ['json', 'tools']", True),
        ("wants = ['json', 'tools']", "wants = ['json']", False),
        ("tags = {env = ['a', 'b']}", "tags = {env = ['a'], x = ['y']}", True),
        ("team = ['a']", "key = ['a']", False),
        ("team = ['a'], difficulty = {min = 0.0}", "team = ['a']", True),
        ("team = ['a'], difficulty = {max = 1.0}", "team = ['a']", False),
        ("team = ['a'], quality = {backend = 'a', min = 0.0}", "team = ['a']", False),
    ],
)
def test_check_warns_of_rules_that_an_earlier_one_covers(
    first: str, second: str, warned: bool
) -> None:
    """Whatever the second matches, the first has matched: it never decides."""
    text = "".join(
        f"[[rules]]\nname = 'r{i}'\nroute = 'nano'\nwhen = {{{when}}}\n"
        for i, when in enumerate((first, second))
    )
    found = [(p.level, p.path) for p in check(text + DEFAULT)]
    assert found == ([("warning", "rules[1]")] if warned else [])


def test_check_sees_through_conditions_that_cannot_fail() -> None:
    """A rule for all difficulties from 0 on ends the list as one without conditions does."""
    when = "when = { difficulty = { min = 0.0 }, turns = { min = -1 } }\n"
    text = rule(f"route = 'nano'\nfallbacks = ['small']\n{when}")
    text += "fallbacks = ['nano']\n"
    assert [(p.level, p.path) for p in check(text, KNOWN)] == [("warning", "default")]


def test_check_warns_of_names_that_no_request_has() -> None:
    """Languages that are no code of the classifier's, and tags that only a key may say."""
    when = "when = { language = ['english', 'de'], tags = { team = ['a'] } }"
    found = check(rule(f"route = 'nano'\n{when}"), languages={"de", "en"})
    assert [(p.level, p.path, p.line) for p in found] == [
        ("warning", "rules[0].when.language", 4),
        ("warning", "rules[0].when.tags.team", 4),
    ]
    assert "'english': matches nothing; known are de, en" in found[0].message
    assert "use the condition 'team'" in found[1].message


def test_check_warns_of_qualities_that_nobody_predicts() -> None:
    """With backends of one's own the shipped head says nothing, and nobody would notice."""
    fleet = {"cheap": {"a", "b"}, "a": {"a"}, "b": {"b"}, "dear": {"dear"}}
    text = rule(
        "route = 'dear'\nfallbacks = ['*']\nwhen = { quality = { backend = 'cheap', min = 0.5 } }"
    ).replace(DEFAULT, '[default]\nobjective = { minimise = "cost", min_quality = 0.8 }\n')

    def warned(*predicted: str) -> list[tuple[str, str]]:
        found = check(text, fleet, predicted=predicted)
        assert all("`headgate policy fit`" in problem.message for problem in found)
        return [(problem.level, problem.path) for problem in found]

    condition, goal = "rules[0].when.quality.backend", "default.objective"
    assert warned() == [("warning", condition), ("warning", goal)]
    assert warned("b", "dear") == [("warning", goal)]
    assert warned("a", "b", "dear") == []


def test_check_counts_the_backends_behind_a_tier() -> None:
    """Two backends in a tier stand for each other; a backend is no fallback of itself."""
    fleet = {"cheap": {"a", "b"}, "a": {"a"}, "b": {"b"}, "dear": {"dear"}}
    assert check('[default]\nroute = "cheap"\n', fleet) == []
    for alone in ("fallbacks = ['dear']", "fallbacks = ['backend:dear']", ""):
        (problem,) = check(f'[default]\nroute = "dear"\n{alone}\n', fleet)
        assert (problem.level, problem.path) == ("warning", "default")


@settings(max_examples=200, deadline=None)
@given(any_.whens, any_.whens, any_.facts, any_.cards, any_.budgets, any_.moments)
def test_what_covers_holds_wherever_the_covered_does(
    wide: When,
    narrow: When,
    facts: Facts,
    cards: dict[str, BackendCard],
    budget: BudgetState,
    now: datetime,
) -> None:
    """If the checker says that one condition covers another, no request tells otherwise."""
    narrow = replace(narrow, **{f: getattr(wide, f) for f in wide.__struct_fields__[:9]})
    situation = Situation(facts, cards, budget, now)
    if covers(wide, narrow) and all(check(situation)[0] for check in compile_when(narrow)):
        assert all(check(situation)[0] for check in compile_when(wide))


@settings(max_examples=60, deadline=None)
@given(any_.policies())
def test_check_accepts_every_valid_policy(policy: Policy) -> None:
    """What the types and ranges allow decodes from its own data, and the JSON Schema agrees."""
    data = msgspec.to_builtins(policy)
    assert msgspec.convert(data, Policy) == policy
    _validator().validate(data)


@functools.cache
def _validator() -> Any:
    """Of the schema, itself checked once: `jsonschema.validate` would check it at every example."""
    found = schema()
    kind = validator_for(found)
    kind.check_schema(found)
    return kind(found)
