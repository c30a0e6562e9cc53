"""The stand-in for absl's flags does what absl does: results, rests and error texts."""

import pytest
from absl import flags as absl_flags

from polaris_jax.commands import grade, plain_flags

WORDS = [
    [],
    ["--workers=3", "--mode", "train", "-preset=strict", "--timeout_s=1e1"],
    ["--explain"],
    ["--explain=false"],
    ["--noexplain"],
    ["--explain=0", "--explain=T"],
    ["--workers=0x10"],
    ["--input=a=b", "--input="],
    ["--input", "--out"],
    ["--", "--input=x", "rest"],
    ["a", "--input=x", "b"],
    ["--input=x", "-", "b"],
    ["--workers=0"],
    ["--workers=x"],
    ["--workers=1.5"],
    ["--memory_mib=-1"],
    ["--timeout_s=0"],
    ["--timeout_s=fast"],
    ["--mode=foo"],
    ["--preset="],
    ["--explain=maybe"],
    ["--noexplain=1"],
    ["--noinput"],
    ["--inptu=x"],
    ["--inptu", "--workers=2"],
    ["--out"],
    ["--=5"],
]


def outcome(flags, words, gnu):
    """What a command line leads to: words left and values, or the kind and text of the error."""
    values = flags.FlagValues()
    values.set_gnu_getopt(gnu)
    flags.DEFINE_integer("some", 5, "", lower_bound=2, upper_bound=7, flag_values=values)
    flags.DEFINE_integer("most", None, "", upper_bound=7, flag_values=values)
    flags.DEFINE_float("share", 0.5, "", lower_bound=0.0, upper_bound=1.0, flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "flags", flags)
        grade._define(values)
    try:
        rest = values(["polaris grade", *words])
    except flags.UnrecognizedFlagError as error:
        return "unknown", error.flagname
    except flags.IllegalFlagValueError as error:
        return "illegal", str(error)
    except flags.Error as error:
        return "error", str(error)
    except ValueError as error:
        return "value", str(error)
    return rest, {name: values[name].value for name in values}


def declared(flags):
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "flags", flags)
        grade._define(values)
    return [(values[n].name, values[n].default, values[n].help) for n in values]


@pytest.mark.parametrize("gnu", [False, True], ids=["stops at a word", "flags anywhere"])
@pytest.mark.parametrize(
    "words",
    [*WORDS, ["--some=1"], ["--some=8"], ["--most=8"], ["--share=2"]],
    ids=" ".join,
)
def test_it_does_what_absl_does(words, gnu):
    assert outcome(plain_flags, words, gnu) == outcome(absl_flags, words, gnu)


def test_it_declares_what_absl_declares():
    assert declared(plain_flags) == declared(absl_flags)
