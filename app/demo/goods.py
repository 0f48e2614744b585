"""What the demo villages sell: realistic products, prices in fen, with origin. Numbers are stock for one show of three hundred viewers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Good:
    word: str  # how the script names it
    name: str
    description: str
    unit: str
    village: str
    lot: str
    harvested_on: str
    image: str
    price_minor: int
    list_price_minor: int
    stock: int
    limit: int = 0
    return_policy: str = "no_reason_7_days"
    price_min_minor: int | None = None  # how far the host may go down by herself


TEA = Good(
    word="tea",
    name="明前龙井 Longjing tea, first flush",
    description="Picked before Qingming by eleven families of Meijiawu; pan-fired the same evening. 一芽一叶，当晚手工炒制。",
    unit="100 g tin",
    village="杭州·梅家坞 Meijiawu, Hangzhou",
    lot="MJW-2026-0402",
    harvested_on="2026-04-02",
    image="/static/img/tea.svg",
    price_minor=16800,
    list_price_minor=19800,
    stock=120,
    limit=3,
    price_min_minor=14800,
)
ORANGE = Good(
    word="orange",
    name="赣南脐橙 Gannan navel oranges",
    description="Tree-ripened on the red hills of Anyuan; packed on the day of order. 树上自然熟，下单当天采。",
    unit="5 kg box",
    village="赣州·安远 Anyuan, Ganzhou",
    lot="AY-1118-B",
    harvested_on="2026-11-18",
    image="/static/img/citrus.svg",
    price_minor=4990,
    list_price_minor=5990,
    stock=80,
    limit=5,
    return_policy="fresh_no_return",
    price_min_minor=4490,
)
HONEY = Good(
    word="honey",
    name="椴树雪蜜 Linden honey",
    description="One harvest a year, from the Raohe forest. White and grainy when cool, as it should be. 一年一季，低温结晶。",
    unit="500 g jar",
    village="双鸭山·饶河 Raohe, Heilongjiang",
    lot="RH-LD-07",
    harvested_on="2026-07-15",
    image="/static/img/honey.svg",
    price_minor=2900,
    list_price_minor=6800,
    stock=60,
    limit=1,
    price_min_minor=1990,
)
RICE = Good(
    word="rice",
    name="五常大米 Wuchang rice, new harvest",
    description="Daohuaxiang 2, milled to order; steam a cup and the whole yard smells of it. 稻花香二号，现磨现发。",
    unit="5 kg bag",
    village="五常·民乐 Minle, Wuchang",
    lot="WC-DHX2-1009",
    harvested_on="2026-10-09",
    image="/static/img/rice.svg",
    price_minor=7980,
    list_price_minor=8980,
    stock=100,
    limit=4,
    price_min_minor=6980,
)
MUSHROOM = Good(
    word="mushroom",
    name="东宁黑木耳 Black wood-ear mushrooms",
    description="Autumn ears, small and thick, dried on bamboo. Soak a handful, get a bowl. 秋耳，小而厚，泡发率高。",
    unit="250 g bag",
    village="牡丹江·东宁 Dongning, Heilongjiang",
    lot="DN-1002",
    harvested_on="2026-10-02",
    image="/static/img/mushroom.svg",
    price_minor=3580,
    list_price_minor=4280,
    stock=90,
)
EGGS = Good(
    word="eggs",
    name="林下土鸡蛋 Free-range eggs",
    description="Hens under chestnut trees; every tray says which farm and which morning. 板栗林散养，枚枚可追溯。",
    unit="tray of 30",
    village="罗田·九资河 Jiuzihe, Luotian",
    lot="LT-EGG-1120",
    harvested_on="2026-11-20",
    image="/static/img/eggs.svg",
    price_minor=3960,
    list_price_minor=4560,
    stock=70,
    limit=2,
    return_policy="fresh_no_return",
)

GOODS: tuple[Good, ...] = (TEA, ORANGE, HONEY, RICE, MUSHROOM, EGGS)
