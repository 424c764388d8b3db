from thumbnet.printing import padded, printable, shortened, width_of


def test_names_are_printed_without_harm():
    assert printable("caf\u00e9 1.jpg") == "caf\u00e9 1.jpg"
    assert printable("a\nb\x1b[31m\udcff") == "a\\nb\\x1b[31m\\udcff"


def test_long_names_are_shortened():
    assert shortened("frog", 4) == "frog"
    assert shortened("frogs", 4) == "fro\N{HORIZONTAL ELLIPSIS}"
    assert shortened("a\nb", 4) == "a\\nb"


def test_east_asian_letters_take_two_cells():
    assert [width_of(name) for name in ("frog", "\u304b\u3048\u308b", "cafe\u0301")] == [4, 6, 4]
    assert padded("\u304b\u3048\u308b", 8) == "\u304b\u3048\u308b  "
    assert padded("a long name", 4) == "a long name"
