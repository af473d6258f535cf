"""What a request costs: the published tables, the boundary, dates, currencies, files."""

from __future__ import annotations

from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longsight.server.metering.errors import PriceError
from longsight.server.metering.money import from_micro, half_even
from longsight.server.metering.price_file import from_token_costs, load_prices
from longsight.server.metering.prices import (
    DEFAULT_PRICES,
    CurrencyRate,
    PriceRow,
    PriceTable,
    Rates,
    day_of,
    usd,
)
from longsight.server.usage import UsageRecord
from usage_records import NOON, record

MILLION = 1_000_000
LIST = PriceTable(
    rows=[PriceRow(r.model, r.rates, r.long, long_tier_tokens=r.long_tier_tokens) for r in DEFAULT_PRICES.rows],
    currencies=DEFAULT_PRICES.currencies,
)


def parts(table: PriceTable, prompt: int, currency: str = "USD", **changes: object) -> tuple[Fraction, ...]:
    """Input, output and cached input per million tokens, as charged at a prompt of this length.

    Output is what a million tokens add; cached input is what is paid when every prompt token is a cached one.
    """

    def amount(**more: object) -> int:
        return table.charge(record(prompt_tokens=prompt, **{"completion_tokens": 0, **changes, **more})).amounts[
            currency
        ]

    return (
        Fraction(amount(), prompt),
        Fraction(amount(completion_tokens=MILLION) - amount(), MILLION),
        Fraction(amount(cached_tokens=prompt), prompt),
    )


SHORT, LONG = 500_000, 1_000_000


@pytest.mark.parametrize(
    ("table", "prompt", "currency", "service_tier", "expected"),
    [
        (DEFAULT_PRICES, SHORT, "USD", "standard", "0.30 1.20 0.06"),
        (DEFAULT_PRICES, LONG, "USD", "standard", "0.60 2.40 0.12"),
        (LIST, SHORT, "USD", "standard", "0.60 2.40 0.12"),
        (LIST, LONG, "USD", "standard", "1.20 4.80 0.24"),
        (DEFAULT_PRICES, SHORT, "USD", "priority", "0.45 1.80 0.09"),
        (LIST, LONG, "USD", "priority", "1.80 7.20 0.36"),
        (DEFAULT_PRICES, SHORT, "DZD", "standard", "105 420 21"),
        (DEFAULT_PRICES, LONG, "DZD", "standard", "210 840 42"),
        (DEFAULT_PRICES, SHORT, "CNY", "standard", "2.10 8.40 0.42"),
    ],
)
def test_the_published_m3_prices(
    table: PriceTable, prompt: int, currency: str, service_tier: str, expected: str
) -> None:
    assert parts(table, prompt, currency, service_tier=service_tier) == tuple(map(Fraction, expected.split()))


def test_m2_has_no_rate_for_cached_tokens_and_one_tier() -> None:
    for prompt in (SHORT, LONG):
        assert parts(DEFAULT_PRICES, prompt, model="MiniMax-M2") == (Fraction("0.5"), Fraction("2.2"), Fraction("0.5"))


@pytest.mark.parametrize(
    ("boundary", "prompt", "tier"),
    [
        (524_288, 511_999, "standard"),
        (524_288, 512_000, "standard"),
        (524_288, 512_001, "standard"),
        (524_288, 524_287, "standard"),
        (524_288, 524_288, "standard"),
        (524_288, 524_289, "long"),
        (512_000, 511_999, "standard"),
        (512_000, 512_000, "standard"),
        (512_000, 512_001, "long"),
        (512_000, 524_287, "long"),
        (512_000, 524_288, "long"),
        (512_000, 524_289, "long"),
    ],
)
def test_the_boundary_reprices_the_whole_request(boundary: int, prompt: int, tier: str) -> None:
    table = PriceTable(DEFAULT_PRICES.rows, DEFAULT_PRICES.currencies, long_tier_tokens=boundary)
    for cached in (0, 1, 400_000, prompt):  # cached tokens count towards the boundary
        charge = table.charge(record(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=1001))
        input_, output, cached_input = (60, 240, 12) if tier == "long" else (30, 120, 6)  # cents per million
        cents = (prompt - cached) * input_ + 1001 * output + cached * cached_input
        assert charge.tier == tier
        assert charge.usd_micro == round(Fraction(cents, 100))
        assert charge.amounts["DZD"] == round(Fraction(cents * 350, 100))
        assert charge.list_usd_micro == round(Fraction(cents * 2, 100))


def test_what_is_billed_however_a_request_ends() -> None:
    assert DEFAULT_PRICES.charge(record(status="ok")).usd_micro == 420
    assert DEFAULT_PRICES.charge(record(status="cancelled")).usd_micro == 420
    assert DEFAULT_PRICES.charge(record(status="error")).amounts == {"USD": 0, "DZD": 0, "CNY": 0}
    assert PriceTable(DEFAULT_PRICES.rows, bill_errors=True).charge(record(status="error")).usd_micro == 420


def test_a_model_outside_the_table_is_free() -> None:
    charge = DEFAULT_PRICES.charge(record(model="longsight"))
    assert set(charge.amounts.values()) == {0}
    assert PriceTable().charge(record()).usd_micro == 0


def test_model_ids_with_an_organisation() -> None:
    for model in ("MiniMax-M3", "minimax-m3", "MiniMaxAI/MiniMax-M3"):
        assert DEFAULT_PRICES.charge(record(model=model)).usd_micro == 420
    own = PriceTable([PriceRow("acme/minimax-m3", Rates(0, 0)), *DEFAULT_PRICES.rows])
    assert own.charge(record(model="acme/MiniMax-M3")).usd_micro == 0


def test_rows_hold_from_a_day_until_another() -> None:
    table = PriceTable(
        rows=[
            PriceRow("m", Rates(MILLION, 0), valid_until=date(2026, 11, 21)),
            PriceRow("m", Rates(2 * MILLION, 0), valid_from=date(2026, 11, 21), valid_until=date(2026, 11, 22)),
        ],
        currencies=[
            CurrencyRate("DZD", 300 * MILLION, valid_until=date(2026, 11, 21)),
            CurrencyRate("DZD", 350 * MILLION, valid_from=date(2026, 11, 21)),
        ],
    )
    midnight = NOON - 43_200

    def amounts(started: float) -> dict[str, int]:
        return table.charge(record(model="m", prompt_tokens=1, completion_tokens=0, started=started)).amounts

    assert day_of(midnight) == date(2026, 11, 21)
    assert amounts(midnight - 1) == {"USD": 1, "DZD": 300}
    assert amounts(midnight) == amounts(midnight + 86_399) == {"USD": 2, "DZD": 700}
    assert amounts(midnight + 86_400) == {"USD": 0, "DZD": 0}


def test_every_currency_is_rounded_once_from_the_exact_amount() -> None:
    # One cached token: 0.06 micro-USD, which rounds to nothing; 21 micro-DZD, which doesn't.
    charge = DEFAULT_PRICES.charge(record(prompt_tokens=1, cached_tokens=1, completion_tokens=0))
    assert charge.amounts == {"USD": 0, "DZD": 21, "CNY": 0}


tokens = st.integers(0, 2_000_000)
micro = st.integers(0, 10_000_000)
rates = st.builds(Rates, micro, micro, st.none() | micro)


@given(
    rates, rates, st.integers(0, 10_000), st.integers(1, 10**9), tokens, tokens, st.data(),
    st.sampled_from([524_288, 512_000]), st.sampled_from(["standard", "priority"]),
)  # fmt: skip
def test_integers_equal_fractions_and_decimals(
    short: Rates,
    long: Rates,
    discount: int,
    per_usd: int,
    prompt: int,
    completion: int,
    data: st.DataObject,
    boundary: int,
    service_tier: str,
) -> None:
    cached = data.draw(st.integers(0, prompt))
    table = PriceTable(
        [PriceRow("m", short, long, discount)], [CurrencyRate("DZD", per_usd)], long_tier_tokens=boundary
    )
    usage = record(
        model="m",
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        service_tier=service_tier,
    )
    charge = table.charge(usage)
    exact = exact_usd_micro(usage, short if prompt <= boundary else long, Fraction(discount, 10_000))
    assert charge.usd_micro == round(exact)  # Fraction rounds halves to even
    assert charge.amounts["DZD"] == round(exact * Fraction(per_usd, MILLION))
    as_decimal = Decimal(exact.numerator) / Decimal(exact.denominator)  # exact: 28 digits, a power of ten below
    assert charge.usd_micro == int(as_decimal.quantize(Decimal(1), ROUND_HALF_EVEN))


def exact_usd_micro(usage: UsageRecord, rates: Rates, discount: Fraction) -> Fraction:
    cached = rates.input if rates.cached_input is None else rates.cached_input
    per_million = (
        (usage.prompt_tokens - usage.cached_tokens) * rates.input
        + usage.cached_tokens * cached
        + usage.completion_tokens * rates.output
    )
    factor = Fraction(3, 2) if usage.service_tier == "priority" else 1
    return Fraction(per_million, MILLION) * (1 - discount) * factor


@pytest.mark.parametrize(("numerator", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (7, 2), (10, 2)])
def test_halves_go_to_the_even_neighbour(numerator: int, expected: int) -> None:
    assert half_even(numerator, 4) == expected


def test_money_as_text() -> None:
    assert [from_micro(n) for n in (0, 1, 1_000_000, -1_500_000)] == ["0.000000", "0.000001", "1.000000", "-1.500000"]
    assert usd("0.06") == 60_000
    assert usd("12") == 12_000_000
    charge = DEFAULT_PRICES.charge(record(), "DZD")
    assert charge.header() == "0.147000 DZD"
    assert charge.as_json()["amount_micro"] == 147_000
    assert charge.as_json()["usd_micro"] == 420
    assert PriceTable(DEFAULT_PRICES.rows).charge(record(), "DZD").header() == "0.000420 USD"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cached_tokens": 1001}, "1001 cached of 1000 prompt tokens"),
        ({"prompt_tokens": -1}, "each must be from 0"),
        ({"completion_tokens": 2**60}, "each must be from 0"),
        ({"completion_tokens": 2**53}, "the most is"),
        ({"status": "lost"}, "known are ok, cancelled, error"),
        ({"request_id": ""}, "without an id"),
    ],
)
def test_usage_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PriceError, match=words):
        DEFAULT_PRICES.charge(record(**changes))


TOML = """
long_tier_tokens = 512000
[[price]]
model = "MiniMax-M3"
input = 0.60
output = 2.40
cached_input = "0.12"
long = { input = 1.20, output = 4.80, cached_input = 0.24 }
discount_percent = 50
until = 2027-01-01
[[currency]]
code = "DZD"
per_usd = 350
from = 2026-01-01
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_toml_file(tmp_path: Path) -> None:
    table = load_prices(written(tmp_path / "prices.toml", TOML))
    assert table.long_tier_tokens == 512_000
    assert parts(table, SHORT, "DZD") == (105, 420, 21)
    assert parts(table, 512_001, "DZD") == (210, 840, 42)
    assert table.rows[0].valid_until == date(2027, 1, 1)
    assert table.version != DEFAULT_PRICES.version
    assert table.version == load_prices(tmp_path / "prices.toml").version


def test_the_file_in_the_documentation(tmp_path: Path) -> None:
    text = Path(__file__).parents[1].joinpath("docs/metering.md").read_text()
    table = load_prices(written(tmp_path / "prices.toml", text.split("```toml")[1].split("```")[0]))
    assert table.rows[0].rates == DEFAULT_PRICES.rows[0].rates
    assert parts(table, SHORT, "DZD") == (105, 420, 21)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("= 0.60", "= 0.6000001", "at most six decimals"),
        ("= 0.60", "= -1", "price.0.input is -1"),
        ("= 0.60", "= true", "price.0.input is True"),
        ("input = 0.60\n", "", "price.0.input: Field required"),
        ("discount_percent = 50", "discount = 50", "price.0.discount: Extra inputs"),
        ("discount_percent = 50", "discount_percent = 101", "less than or equal to 100"),
        ("discount_percent = 50", "from = 2027-01-01", "holds on no day"),
        ('"DZD"', '"dinar"', "currency.0.code is 'dinar'"),
        ('"DZD"', '"USD"', "no rate for it"),
        ("[[price]]", "[[price]", "line 3"),
        ("[[currency]]", '[[price]]\nmodel = "minimax-m3"\ninput = 1\noutput = 1\n[[currency]]', "on the same day"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(PriceError, match=words) as caught:
        load_prices(written(tmp_path / "prices.toml", TOML.replace(old, new, 1)))
    assert "prices.toml" in str(caught.value)


def test_per_token_costs_as_others_publish_them(tmp_path: Path) -> None:
    text = """{
      "sample_spec": {"input_cost_per_token": "a number", "output_cost_per_token": 0},
      "minimax/MiniMax-M3": {
        "input_cost_per_token": 3e-07, "input_cost_per_token_above_512k_tokens": 6e-07,
        "output_cost_per_token": 1.2e-06, "output_cost_per_token_above_512k_tokens": 2.4e-06,
        "cache_read_input_token_cost": 6e-08, "cache_read_input_token_cost_above_512k_tokens": 1.2e-07,
        "litellm_provider": "minimax", "mode": "chat"},
      "other": {"input_cost_per_token": 1.25e-06, "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "output_cost_per_token": 1e-05},
      "pictures": {"output_cost_per_image": 0.04}
    }"""
    table = load_prices(written(tmp_path / "costs.json", text))
    assert [row.model for row in table.rows] == ["minimax/MiniMax-M3", "other"]
    m3, other = table.rows
    published = DEFAULT_PRICES.rows[0]
    assert published.long is not None
    for imported, listed in ((m3.rates, published.rates), (m3.long, published.long)):
        assert imported == Rates(listed.input // 2, listed.output // 2, (listed.cached_input or 0) // 2)
    assert (other.rates, other.long) == (Rates(usd("1.25"), usd("10")), Rates(usd("2.5"), usd("10")))
    for row, boundary in ((m3, 524_288), (other, 200_000)):
        for prompt, tier in ((boundary, "standard"), (boundary + 1, "long")):
            assert table.charge(record(model=row.model, prompt_tokens=prompt)).tier == tier
    shifted = from_token_costs({"m": {"input_cost_per_token": 0, "output_cost_per_token": 0}}, 512_000)
    assert shifted.long_tier_tokens == 512_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "holds a list"),
        ({"m": {"input_cost_per_token": Decimal("1e-13"), "output_cost_per_token": 0}}, "six decimals"),
        ({"m": {"input_cost_per_token": "cheap", "output_cost_per_token": 0}}, "'cheap'"),
        (
            {
                "m": {
                    "input_cost_per_token": 0,
                    "output_cost_per_token": 0,
                    "input_cost_per_token_above_128k_tokens": 0,
                    "output_cost_per_token_above_512k_tokens": 0,
                }
            },
            r"\[128, 512\]",
        ),
    ],
)
def test_per_token_costs_that_cannot_be_read(content: object, words: str) -> None:
    with pytest.raises(PriceError, match=words):
        from_token_costs(content)
