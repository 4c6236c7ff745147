"""Packets followed through rules, as the kernel would."""

import ipaddress

import pytest

from netns_graft.doctor import nat
from netns_graft.linux.nat_rules import Action, AddressRange, Chain, Condition, Field, Rule, Table


def net(text):
    one = ipaddress.ip_network(text)
    return AddressRange(one.version, int(one[0]), int(one[-1]))


def source(text, negated=False):
    return Condition(Field.SOURCE, f"saddr {text}", negated, addresses=(net(text),))


def leaves(*names, negated=False):
    return Condition(Field.OUT_INTERFACE, f"oifname {names}", negated, interfaces=names)


MAYBE = Condition(Field.OTHER, "dport 80")
TRANSLATE = Rule("x", (), Action.TRANSLATE)


def rule(action, *conditions, text="x", to=()):
    return Rule(text, conditions, action, to)


def touched(*rules, own=(), family="ip", hook="postrouting", **others):
    chains = {"base": Chain("base", list(rules), hook)}
    chains |= {name: Chain(name, list(inner)) for name, inner in others.items()}
    return nat.examine([Table(family, "nat", chains)], list(own))


@pytest.mark.parametrize(
    ("conditions", "loopback", "local"),
    [
        ([], True, False),
        ([source("127.0.0.1/32")], True, False),
        ([source("127.0.0.0/8", negated=True)], True, False),  # 10.1.1.1 to itself goes over lo as well
        ([leaves("lo")], True, False),
        ([leaves("lo", negated=True)], False, True),
        ([leaves("l*", negated=True)], False, True),
        ([leaves("eth0")], False, True),
        ([leaves("eth0", negated=True)], True, False),
        ([source("10.0.0.0/8"), leaves("lo", negated=True)], False, True),
        ([source("192.0.2.0/24")], False, False),
        ([MAYBE], True, False),
        ([MAYBE, leaves("eth0")], False, True),
        ([Condition(Field.IN_INTERFACE, "iif", interfaces=("wg*",))], False, False),
        ([Condition(Field.IN_INTERFACE, "iif", True, interfaces=("docker0",))], True, False),
        ([Condition(Field.DESTINATION_IS_LOCAL, "local")], True, False),
        ([Condition(Field.DESTINATION_IS_LOCAL, "local", True)], False, True),
    ],
)
def test_conditions(conditions, loopback, local):
    found = touched(rule(Action.TRANSLATE, *conditions), own=["10.1.1.1"])
    assert (bool(found.loopback), bool(found.local)) == (loopback, local)


def test_a_second_rule_for_the_rest_of_loopback_is_seen():
    found = touched(rule(Action.TRANSLATE, source("127.0.0.1/32"), text="first"), rule(Action.TRANSLATE, text="rest"))
    assert [one.text for one in found.loopback] == ["first", "rest"]


def test_families():
    assert touched(TRANSLATE, family="ip6").loopback
    v6 = rule(Action.TRANSLATE, source("::1/128"))
    assert not touched(v6, family="ip").loopback
    assert touched(v6, family="inet").loopback
    only_v4 = rule(Action.TRANSLATE, Condition(Field.IP_VERSION, "", version=4), Condition(Field.SOURCE_IS_LOCAL, ""))
    assert touched(only_v4, family="inet").loopback
    assert not touched(only_v4, family="ip6").loopback


def test_the_cure_that_is_printed_is_one():
    assert not touched(rule(Action.ACCEPT, leaves("lo")), TRANSLATE).loopback


@pytest.mark.parametrize("ending", [Action.ACCEPT, Action.RETURN, Action.TRANSLATE])
def test_what_surely_ends_the_walk_ends_it(ending):
    found = touched(rule(ending, text="first"), rule(Action.TRANSLATE, text="second"))
    assert "second" not in [one.text for one in found.loopback]


@pytest.mark.parametrize("ending", [Action.ACCEPT, Action.RETURN, Action.TRANSLATE])
def test_what_may_end_it_does_not(ending):
    found = touched(rule(ending, MAYBE, text="first"), rule(Action.TRANSLATE, text="second"))
    assert "second" in [one.text for one in found.loopback]


def test_jumps():
    deep = rule(Action.TRANSLATE, text="deep")
    after = rule(Action.TRANSLATE, text="after")
    jump, goto = rule(Action.JUMP, to=("sub",)), rule(Action.GOTO, to=("sub",))

    def seen(*rules, **chains):
        return [one.text for one in touched(*rules, **chains).loopback]

    assert seen(jump, after, sub=[deep]) == ["deep"]
    assert seen(rule(Action.JUMP, MAYBE, to=("sub",)), after, sub=[deep]) == ["deep", "after"]
    assert seen(jump, after, sub=[rule(Action.RETURN), deep]) == ["after"]
    assert seen(jump, after, sub=[rule(Action.ACCEPT), deep]) == []
    assert seen(goto, after, sub=[rule(Action.RETURN), deep]) == []
    assert seen(rule(Action.GOTO, MAYBE, to=("sub",)), after, sub=[deep]) == ["deep", "after"]
    assert seen(jump, after) == ["after"]  # a chain that is not there
    assert seen(rule(Action.JUMP, source("192.0.2.0/24"), to=("sub",)), sub=[deep]) == []
    both = rule(Action.JUMP, to=("sub", "other"))  # a verdict map: either
    assert seen(both, after, sub=[deep], other=[]) == ["deep", "after"]


def test_a_loop_of_chains_ends():
    loop = rule(Action.JUMP, to=("sub",))
    assert not touched(loop, sub=[loop]).loopback


def test_more_rules_than_can_be_followed_are_told():
    many = [rule(Action.JUMP, MAYBE, to=("sub",))] * 30
    assert touched(*many, sub=many).too_many
    assert not touched(TRANSLATE).too_many


def test_other_hooks_are_not_asked():
    assert not touched(TRANSLATE, hook=None).loopback


def test_each_rule_is_told_once_and_where_it_stands():
    found = touched(TRANSLATE, own=["10.1.1.1", "10.1.1.2", "no address"])
    assert [one.line() for one in found.loopback] == ["ip nat base: x"]
    assert found.local == []
