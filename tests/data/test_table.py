from pathlib import Path

import pytest

from thumbnet.data.folder import list_pictures
from thumbnet.errors import DataError


def table(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_paths_and_labels(tmp_path: Path):
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.jpg").write_bytes(b"12345")
    listing = list_pictures(table(tmp_path, "path,label\nimg/1.jpg,dog\nimg/2.jpg,cat\n/elsewhere/3.jpg,dog\n"))
    assert listing.name == "list"
    assert listing.root == tmp_path
    assert listing.paths == ("/elsewhere/3.jpg", "img/1.jpg", "img/2.jpg")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [1, 1, 0]
    assert listing.splits is None
    assert listing.stamps[:, 0].tolist() == [-1, 5, -1]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("label,path,note\ndog,1.jpg,x\ncat,2.jpg,y\n", "utf-8"),
        ("Path ; Class\n1.jpg;dog\n2.jpg;cat\n", "utf-8"),
        ("filename\tcategory\r\n1.jpg\tdog\r\n2.jpg\tcat\r\n", "utf-8"),
        ("image,label\n\n1.jpg,dog\n\n2.jpg,cat\n\n", "utf-8-sig"),
        ('file,label\n"1.jpg","dog"\n 2.jpg , cat \n', "utf-8"),
        ("\n \npath;label\n1.jpg;dog\n2.jpg;cat\n", "utf-8"),
    ],
)
def test_columns_of_other_names_orders_and_separators(text: str, encoding: str, tmp_path: Path):
    listing = list_pictures(table(tmp_path, text, encoding=encoding))
    assert listing.paths == ("1.jpg", "2.jpg")
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [1, 0]


def test_a_path_with_a_comma_in_quotes(tmp_path: Path):
    assert list_pictures(table(tmp_path, 'path,label\n"a,b.jpg",x\nc.jpg,y\n')).paths == ("a,b.jpg", "c.jpg")


def test_numbers_as_labels_are_sorted_as_numbers(tmp_path: Path):
    rows = "".join(f"{number}.jpg,{number}\n" for number in range(12))
    listing = list_pictures(table(tmp_path, "path,label\n" + rows))
    assert listing.class_names == tuple(map(str, range(12)))


def test_a_column_of_splits(tmp_path: Path):
    listing = list_pictures(table(tmp_path, "path,label,split\n1,a,train\n2,b,VAL\n3,b,test\n4,b,train\n"))
    assert listing.splits is not None
    assert listing.splits.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: there is no column 'path', the first row has: nothing"),
        ("path\n1.jpg\n", r"line 1: there is no column 'label', the first row has: path\nname the columns"),
        ("1.jpg,cat\n2.jpg,dog\n", r"line 1: there is no column 'path', the first row has: 1\.jpg,cat"),
        ("label,colour\ncat,red\n", "no column 'path'"),
        ("path,label\n", "no rows below the first"),
        ("path,label\n1.jpg,cat\n2.jpg\n", r"line 3: 1 fields, expected 2: path,label"),
        ("path,label\n1.jpg,cat\na,b.jpg,dog\n", r"line 3: 3 fields, expected 2"),
        ("path,label\n1.jpg,cat\n,dog\n", r"line 3: the path is empty"),
        ("path,label\n1.jpg,cat\n2.jpg, \n", r"line 3: the label is empty"),
        ("path,label,split\n1.jpg,cat,train\n2.jpg,dog,tset\n", r"line 3: unknown split 'tset' - did you mean 'test'"),
        ("path,label\n1.jpg,cat\n2.jpg,cat\n", "one class, 'cat'"),
        ('path,label\n1.jpg,"cat\n', "not a CSV file"),
        ("path,label\n1\0.jpg,cat\n", r"not a CSV file|is empty"),
    ],
)
def test_bad_tables_are_refused_by_line(text: str, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        list_pictures(table(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"byte 14 is not UTF-8"):
        list_pictures(table(tmp_path, "path,label\n1,b\u00e4r\n2,cat\n", encoding="latin-1"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_is_counted_from_the_beginning(mark: bytes, tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_bytes(mark + b"path,label\n" + b"1,cat\n" * 10_000 + b"2,b\xe4r\n")
    with pytest.raises(DataError, match=f"byte {len(mark) + 11 + 60_000 + 3:,} is not UTF-8"):
        list_pictures(path)


def test_a_table_that_cannot_be_opened(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        list_pictures(tmp_path / "nothing.csv")
