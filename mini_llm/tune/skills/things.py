"""What everybody knows and exercises speak of: names, places, animals, colours, and what kind of thing each is."""


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


NAMES = _list(
    "Anna,Ben,Carla,David,Emma,Felix,Grace,Hugo,Ida,Jack,Karen,Leo,Maria,Noah,Olga,Paul,Rosa,Sam,Tina,Victor,Wendy,"
    "Adam,Bella,Clara,Daniel,Elena,Frank,Greta,Henry,Irene,James,Kate,Lucas,Mary,Nina,Oscar,Peter,Ruth,Simon,Thomas"
)
CITIES = _list(
    "Berlin,Paris,London,Rome,Madrid,Vienna,Oslo,Dublin,Boston,Chicago,Denver,Lima,Tokyo,Cairo,Athens,Lisbon,Prague,"
    "Warsaw,Havana,Moscow,Houston,Dallas,Atlanta,Richmond,Baltimore"
)
KINDS = {
    "animal": _list(
        "dog,cat,horse,cow,sheep,goat,pig,lion,tiger,bear,wolf,fox,rabbit,mouse,fish,duck,goose,frog,owl,camel"
    ),
    "fruit": _list("apple,pear,plum,cherry,lemon,orange,banana,grape,melon,peach,fig,mango,date,lime,berry"),
    "colour": _list("red,blue,green,yellow,black,white,brown,grey,pink,purple,orange,gold,silver,violet,scarlet"),
    "tool": _list("hammer,saw,knife,axe,spade,drill,rake,needle,brush,rope,ladder,wheel,plough,chisel,file"),
    "job": _list("teacher,farmer,doctor,soldier,sailor,lawyer,baker,miner,judge,pilot,nurse,writer,painter,smith"),
    "thing in a house": _list(
        "table,chair,bed,door,window,lamp,clock,cup,plate,spoon,carpet,mirror,shelf,stove,basket"
    ),
}


def with_article(thing: str) -> str:
    """Return a thing with "a" or "an" before it."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
