"""The words that an answer may hold beside its mathematics: units, number words, scales, names.

Only tables and the two look-ups over them. Every table is a constant; nothing registers itself.
"""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def _aliases(rows: str) -> MappingProxyType[str, str]:
    """`canonical: alias alias` a line -> alias (and canonical) to canonical."""
    table: dict[str, str] = {}
    for row in rows.strip().splitlines():
        canonical, _, names = row.strip().partition(":")
        for name in (canonical, *names.split()):
            table[name] = canonical
    return MappingProxyType(table)


# Two answers conflict only where both carry a unit of this table and the units differ.
UNITS = _aliases(
    """
    mm: millimeter millimeters millimetre millimetres
    cm: centimeter centimeters centimetre centimetres
    dm: decimeter decimeters
    m: meter meters metre metres
    km: kilometer kilometers kilometre kilometres
    nm: nanometer nanometers
    inch: inches in
    ft: foot feet
    yd: yard yards
    mile: miles mi
    mg: milligram milligrams
    g: gram grams
    kg: kilogram kilograms kgs
    ton: tons tonnes tonne
    lb: lbs pound pounds
    oz: ounce ounces
    ml: milliliter milliliters millilitre millilitres mL
    l: liter liters litre litres L
    gallon: gallons gal
    ms: millisecond milliseconds
    s: second seconds sec secs
    min: minute minutes mins
    h: hour hours hr hrs
    day: days
    week: weeks
    month: months
    year: years yr yrs
    mph:
    kph: kmh
    hz: hertz Hz
    khz: kHz
    ghz: GHz
    mhz: MHz
    n: newton newtons N
    j: joule joules J
    kj: kJ
    ev: eV
    kcal: kilocalories kilocalorie
    cal: calories calorie
    w: watt watts W
    kw: kW
    v: volt volts V
    pa: pascal pascals Pa
    kpa: kPa
    k: kelvin kelvins K
    deg: degree degrees deg
    rad: radian radians
    mol: mole moles
    dollar: dollars usd bucks USD
    cent: cents
    euro: euros EUR
    yuan: rmb
    yen:
    unit: units
    """
)

# What a unit measures and its size: `lenient` comparison converts within a dimension.
UNIT_SCALES = MappingProxyType(
    {
        name: (dimension, Fraction(size))
        for dimension, row in {
            "length": "m 1 km 1000 dm 1/10 cm 1/100 mm 1/1000 nm 1/1000000000 inch 127/5000 "
            "ft 381/1250 yd 1143/1250 mile 201168/125",
            "mass": "g 1 kg 1000 mg 1/1000 ton 1000000",
            "volume": "l 1 ml 1/1000",
            "time": "s 1 ms 1/1000 min 60 h 3600 day 86400 week 604800",
            "money": "dollar 1 cent 1/100",
        }.items()
        for name, size in zip(row.split()[::2], row.split()[1::2], strict=True)
    }
)

CURRENCIES = frozenset({"dollar", "euro", "yuan", "yen", "lb"})  # these may stand before a number

# A bare `units` says nothing about which: it never conflicts.
SILENT_UNITS = frozenset({"unit"})

SINGLE_LETTER_UNITS = word_set("m g s h l L N J W V K A C F")

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = MappingProxyType(
    {word: value for value, word in enumerate(_NUMBERS.split())}
    | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80}
    | {"ninety": 90}
)

_POWERS_OF_TEN = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15,
    "quintillion": 18, "lakh": 5, "crore": 7,
}  # fmt: skip
SCALES = MappingProxyType(
    _POWERS_OF_TEN
    | {f"{word}s": power for word, power in _POWERS_OF_TEN.items()}
    | {"tens": 1, "mil": 6, "mn": 6, "bn": 9}
)

# Words behind a number that change it, and are no nouns of things counted.
MULTIPLES = MappingProxyType(
    {"dozen": 12, "dozens": 12, "score": 20, "gross": 144}
    | {"doubled": 2, "tripled": 3, "quadrupled": 4}
)
POWERS = MappingProxyType({"squared": 2, "cubed": 3})

# Words of a choice's text that may deny it, compare it or make another value of it.
CHANGING_WORDS = word_set(
    "not no non wrong false untrue incorrect incorrectly invalid never neither nor none isn isnt "
    "aren arent doesn doesnt don dont can cant cannot but except excluding without unless "
    "impossible excluded eliminated rejected discarded fewer less lesser more greater larger "
    "bigger smaller higher lower under over above below beyond beneath least most beside another "
    "other opposite reciprocal inverse negative minus plus negated scores fold twofold threefold "
    "permille permil mille ppm ppb basis base binary octal decimal hexadecimal hex ternary mod "
    "modulo power halved"
)
# Words behind a value or before an equals sign that deny the complete answer, wherever they stand.
DENYING_WORDS = word_set("not never neither nor isn isnt aren arent doesn doesnt cannot cant")
# Words behind a value that change it where they stand last; before a noun they belong to that:
# `5 is wrong` and `101 in binary`, but `5 wrong answers` and `5 binary digits`.
FINAL_WORDS = word_set(
    "no none wrong false untrue incorrect incorrectly invalid impossible excluded eliminated "
    "rejected discarded halved negated reciprocal inverse opposite fold twofold threefold permille "
    "permil mille ppm ppb mod modulo binary octal hexadecimal hex ternary"
)
CHOICES = frozenset("ABCDEFGHIJ")
# The words that may follow a choice letter and leave it chosen: `A is correct`, `II only`.
ASSENTING_WORDS = word_set(
    "is are the answer answers option choice statement statements correct right true only alone"
)

PERCENT_WORDS = frozenset({"percent", "pct", "percentage"})
FUNCTION_NAMES = frozenset({"f", "g", "h", "F", "G", "H"})  # `f(x)` is a value, not a product
SEPARATORS = frozenset({"and", "or"})

# Runs of two or three plain letters that are words, not products of variables.
SHORT_WORDS = word_set(
    "yes no odd all red mon tue wed thu fri sat sun jan feb mar apr jun jul aug sep oct nov dec "
    "am pm none pct one two six ten usd eur"
)

FUNCTIONS = word_set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp gcd "
    "lcm max min det arg deg Re Im sgn cis"
)
INVERSE = MappingProxyType(
    {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "sqrt": "sqrt", "root": "sqrt"}
)

GREEK = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi "
    "Sigma Upsilon Phi Psi Omega ell hbar Pi pi aleph nabla partial imath jmath"
)


def unit_name(word: str) -> str | None:
    """The canonical unit that a word names, or None."""
    return UNITS.get(word) or UNITS.get(word.lower())


def is_unit_word(word: str) -> bool:
    """Whether a run of plain letters reads as a unit behind a number: `5 cm`, never `5 m`."""
    return len(word) >= 2 and unit_name(word) is not None
