import pandas as pd
import pytest

from skinbook.config import SkinbookError
from skinbook.data.schema import COLUMNS, tidy


def a_table():
    return pd.DataFrame(
        {
            "source": ["clinic"] * 3,
            "image_id": ["I1", "I2", "I3"],
            "lesion_id": ["L1", "L1", "L2"],
            "dx": ["nv", "nv", "mel"],
            "dx_type": ["histo", None, "follow_up"],
            "age": [45, None, 80],
            "sex": ["male", None, "female"],
            "site": [None, "back", "face"],
            "remark": ["", "", ""],
        }
    )


def test_a_sound_table_comes_back_with_the_schema_s_columns_and_dtypes():
    table = tidy(a_table(), "table.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["age"].dtype == "float64"
    assert table.index.tolist() == [0, 1, 2]
    assert table["site"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        (
            "dx",
            "mole",
            r"table\.csv, row 3, column dx: found 'mole', expected one of nv, mel, .*\. Correct the table\.",
        ),
        ("age", 400, r"row 3, column age: found 400(\.0)?, expected a number of years from 0 to 120, or empty\."),
        ("age", "old", r"row 3, column age: found 'old', expected a number of years from 0 to 120, or empty\."),
        ("sex", "m", r"row 3, column sex: found 'm', expected female, male, or empty"),
        ("dx_type", "guess", r"row 3, column dx_type: found 'guess', expected one of histo"),
        ("lesion_id", "", r"row 3, column lesion_id: found '', expected a text that is not empty"),
        ("image_id", "I1", r"image_id 'I1' stands in rows 2, 3; every image may appear once"),
    ],
)
def test_a_fault_is_one_sentence_with_file_row_and_column(column, value, sentence):
    table = a_table().astype({column: object})
    table.loc[1, column] = value
    with pytest.raises(SkinbookError, match=sentence):
        tidy(table, "table.csv")


def test_several_faulty_rows_are_counted():
    with pytest.raises(SkinbookError, match=r"row 2, column dx: found 'x'.*\(3 such rows\)"):
        tidy(a_table().assign(dx="x"), "table.csv")


def test_lacking_columns_are_named_with_those_that_are_there():
    with pytest.raises(SkinbookError, match=r"table\.csv lacks the columns lesion_id, dx; it has source, image_id"):
        tidy(a_table().drop(columns=["lesion_id", "dx"]), "table.csv")
