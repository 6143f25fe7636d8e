"""Coefficients of explicit Runge–Kutta methods, written as Butcher tableaus.

A row `c | a_0 a_1 …` describes one stage: its time c and the weights of the velocities before it. The row `b |` holds
the weights of the solution, and the row `b* |` those of an embedded solution of lower order, from which the error of
adaptive steps is estimated. A line without a bar continues the row above it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge–Kutta method, in Butcher's notation."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


@dataclass(frozen=True)
class EmbeddedTableau(Tableau):
    """A tableau with an error estimate.

    `b_error` is b minus the weights of the embedded solution; its last entry belongs to the velocity at the step's end.
    """

    b_error: tuple[float, ...]


def _rows(table: str) -> list[tuple[str, tuple[float, ...]]]:
    """The rows of a table: what stands before the bar, and the numbers after it."""
    rows: list[tuple[str, list[float]]] = []
    for line in table.strip().splitlines():
        label, bar, entries = line.rpartition("|")
        if bar:
            rows.append((label.strip(), []))
        rows[-1][1].extend(_number(entry) for entry in entries.split())
    return [(label, tuple(entries)) for label, entries in rows]


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return int(numerator) / int(denominator or 1)


def read_tableau(order: int, table: str) -> Tableau:
    """Read the tableau of a method with fixed steps; its last row is `b`."""
    *stages, (_, b) = _rows(table)
    return Tableau(order, tuple(_number(c) for c, _ in stages), tuple(a for _, a in stages), b)


def read_embedded_tableau(order: int, table: str) -> EmbeddedTableau:
    """Read the tableau of a method with adaptive steps; its last two rows are `b` and `b*`."""
    *stages, (_, b), (_, b_lower) = _rows(table)
    b_error = tuple(high - low for high, low in zip((*b, 0.0), b_lower, strict=True))
    return EmbeddedTableau(order, tuple(_number(c) for c, _ in stages), tuple(a for _, a in stages), b, b_error)


FIXED_STEP = {
    "euler": read_tableau(
        1,
        """
        0 |
        b | 1
        """,
    ),
    "midpoint": read_tableau(
        2,
        """
        0   |
        1/2 | 1/2
        b   | 0   1
        """,
    ),
    "heun": read_tableau(
        2,
        """
        0 |
        1 | 1
        b | 1/2 1/2
        """,
    ),
    "heun3": read_tableau(
        3,
        """
        0   |
        1/3 | 1/3
        2/3 | 0   2/3
        b   | 1/4 0   3/4
        """,
    ),
    # Kutta's 3/8 rule, which torchdiffeq also calls rk4: a smaller error than the classic rule at the same cost.
    "rk4": read_tableau(
        4,
        """
        0   |
        1/3 | 1/3
        2/3 | -1/3 1
        1   | 1    -1  1
        b   | 1/8  3/8 3/8 1/8
        """,
    ),
}

ADAPTIVE = {
    "adaptive_heun": read_embedded_tableau(
        2,
        """
        0  |
        1  | 1
        b  | 1/2 1/2
        b* | 1   0   0
        """,
    ),
    # Fehlberg, 1969
    "fehlberg2": read_embedded_tableau(
        2,
        """
        0   |
        1/2 | 1/2
        1   | 1/256 255/256
        b   | 1/512 255/256 1/512
        b*  | 1/256 255/256 0     0
        """,
    ),
    # Bogacki and Shampine, 1989
    "bosh3": read_embedded_tableau(
        3,
        """
        0   |
        1/2 | 1/2
        3/4 | 0    3/4
        b   | 2/9  1/3 4/9
        b*  | 7/24 1/4 1/3 1/8
        """,
    ),
    # Dormand and Prince, 1980
    "dopri5": read_embedded_tableau(
        5,
        """
        0    |
        1/5  | 1/5
        3/10 | 3/40       9/40
        4/5  | 44/45      -56/15      32/9
        8/9  | 19372/6561 -25360/2187 64448/6561 -212/729
        1    | 9017/3168  -355/33     46732/5247 49/176  -5103/18656
        b    | 35/384     0           500/1113   125/192 -2187/6784    11/84
        b*   | 5179/57600 0           7571/16695 393/640 -92097/339200 187/2100 1/40
        """,
    ),
    # Prince and Dormand, 1981
    "dopri8": read_embedded_tableau(
        8,
        """
        0    |
        1/18 | 1/18
        1/12 | 1/48 1/16
        1/8  | 1/32 0 3/32
        5/16 | 5/16 0 -75/64 75/64
        3/8  | 3/80 0 0 3/16 3/20
        59/400 | 29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000
        93/200 | 16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229
            -180193667/1043307555
        5490023248/9719169821 | 39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301
            100302831/723423059 790204164/839813087 800635310/3783071287
        13/20 | 246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935
            6005943493/2108947869 393006217/1396673457 123872331/1001029789
        1201146811/1299019798 | -1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823
            -10304129995/1701304382 -48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696
            3065993473/597172653
        1  | 185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211
            5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083
        1  | 403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604
            11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525
            248638103/1413531060 0
        b  | 14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732
            -1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4
        b* | 13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186
            -3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0 0
        """,
    ),
}
